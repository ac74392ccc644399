"""Forms with recordings (multipart/form-data, RFC 7578), read strictly and held in memory alone.

What a part declares of itself, its file name, type and charset, is not looked at.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser

from appliance.api.problems import Problem
from appliance.tenancy.intake import LIMITS

if TYPE_CHECKING:
    from typing import IO

    from werkzeug.datastructures import FileStorage, Headers, MultiDict

MAX_PARTS = 40
MAX_BOUNDARY = 70  # characters, RFC 2046, 5.1.1
# Of what is between recordings: fields, and the headers of parts. More than the 64 KiB that are read at once.
MAX_BETWEEN = 131_072


def read_form(
    stream: IO[bytes], boundary: str | None, limit: int
) -> tuple[MultiDict[str, str], MultiDict[str, FileStorage]]:
    """Return the fields, each given once, and the files. Raises Problem, and RequestEntityTooLarge.

    `limit` is one more than the bytes that a body may have.
    """
    if not boundary:
        raise Problem("invalid_request", "the form has no boundary")
    if not boundary.isascii() or len(boundary) > MAX_BOUNDARY:
        raise Problem(
            "invalid_request", f"the form's boundary is not at most {MAX_BOUNDARY} ASCII characters"
        )
    counted = _Counted(stream, limit)
    parser = _Parser(_in_memory, max_form_memory_size=MAX_BETWEEN, max_form_parts=MAX_PARTS)
    try:
        fields, files = parser.parse(counted, boundary.encode("ascii"), None)  # type: ignore[arg-type]
    except (ValueError, AttributeError):  # the latter for a part whose disposition cannot be read
        counted.require_whole()
        raise Problem("invalid_request", "the body is not a complete form") from None
    counted.require_whole()
    names = [*fields.keys(), *files.keys()]
    if None in names:
        raise Problem("invalid_request", "a part of the form has no name")
    if len(names) != len(set(names)) or any(len(fields.getlist(name)) > 1 for name in fields):
        raise Problem("invalid_field", "the form has the same field twice")
    return fields, files


class _Parser(MultiPartParser):
    def get_part_charset(self, headers: Headers) -> str:  # noqa: ARG002
        return "utf-8"


class _Recording(BytesIO):
    def write(self, content: bytes) -> int:  # type: ignore[override]
        written = super().write(content)
        if self.tell() > LIMITS.upload_bytes:
            raise RequestEntityTooLarge
        return written


def _in_memory(*_: Any, **__: Any) -> IO[bytes]:
    """Werkzeug's own would write all but small files to a disk, in the clear."""
    return _Recording()


class _Counted:
    """A body, of which at most `limit` bytes are read."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int) -> bytes:
        content = self._stream.read(min(size, self._left))
        self._left -= len(content)
        return content

    def require_whole(self) -> None:
        if self._left <= 0:
            raise RequestEntityTooLarge
