"""Request bodies, read strictly: JSON, and forms where a route takes recordings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from flask import Request, current_app
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from werkzeug.exceptions import RequestEntityTooLarge

from appliance.api.blueprint import UPLOADS
from appliance.api.context import services
from appliance.api.engine import RETRY_SECONDS
from appliance.api.multipart import read_form
from appliance.api.problems import Problem

DISCARD_SECONDS = 1.0
LINGER_SECONDS = 2.0


class StrictRequest(Request):
    """A request whose JSON has one meaning only.

    Python's reader takes duplicate keys, NaN, other encodings and any top-level value; two readers of one
    body could then disagree about what was asked for. flask-openapi calls `get_json`, so it is replaced here.
    """

    _release_upload: Callable[[], object] | None = None

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:  # noqa: ARG002
        """Return the body as an object. Raises Problem, whatever the arguments, and RequestEntityTooLarge."""
        if (
            self.mimetype != "application/json"
            or self.headers.get("Content-Encoding", "identity") != "identity"
        ):
            raise Problem("unsupported_media_type")
        body = self.get_data(cache=False)
        # Of a chunked body Werkzeug returns as much as is allowed and drops the rest without a word.
        if self.max_content_length is not None and len(body) >= self.max_content_length:
            raise RequestEntityTooLarge
        return read_object(body)

    @property
    def body_limit(self) -> int:
        """Bytes that this request's body may have."""
        settings = services().settings
        return settings.max_upload_bytes if self.endpoint in UPLOADS else settings.max_body_bytes

    @property
    def max_content_length(self) -> int | None:
        """One more than is allowed, so that a body cut there is told from one that just fits."""
        return self.body_limit + 1 if current_app else None

    @max_content_length.setter
    def max_content_length(self, _: int | None) -> None:
        raise AttributeError("the limit is a setting")

    def _load_form_data(self) -> None:
        """Read a form; flask-openapi asks for `form` and `files`, which lead here."""
        if "form" in self.__dict__:
            return
        if self.endpoint not in UPLOADS or self.mimetype != "multipart/form-data":
            raise Problem("unsupported_media_type")
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise Problem("unsupported_media_type")
        slots = services().uploads
        if not slots.acquire(blocking=False):
            raise Problem("too_many_uploads", retry_after=RETRY_SECONDS)
        self._release_upload = slots.release
        boundary = self.mimetype_params.get("boundary")
        fields, files = read_form(self.stream, boundary, self.body_limit + 1)
        self.__dict__["form"], self.__dict__["files"] = fields, files

    def release_upload(self) -> None:
        """Let the next upload in. What this one held in memory ends with the request."""
        release, self._release_upload = self._release_upload, None
        if release is not None:
            release()

    def discard_body(self) -> None:
        """Read what is left of a body that nginx has read whole before it sent it here.

        Gunicorn itself discards less than 64 KiB and else closes a connection that its answer has promised to
        keep; nginx may have sent somebody else's request into it by then, who would get a 502. Such a body is
        here already; one that isn't is left alone soon, since its sender would hold the thread.
        """
        if self.endpoint not in UPLOADS:
            self._read_on(DISCARD_SECONDS)

    def linger(self) -> None:
        """Once the answer is out, read on until nginx has seen it, for a moment at most.

        A recording comes here while its sender still sends it. If it is refused, and the connection closed
        with some of it unread, nginx fails to send the rest, and may tell its caller of that (502) and not of
        the answer. When nginx reads the answer it closes, and there is nothing to read any more.
        """
        self._read_on(LINGER_SECONDS)

    def _read_on(self, seconds: float) -> None:
        connection = self.environ.get("gunicorn.socket")
        if connection is None or not (self.content_length or "HTTP_TRANSFER_ENCODING" in self.environ):
            return
        end = time.monotonic() + seconds
        before = connection.gettimeout()
        with suppress(OSError, ParseException):
            try:
                while (left := end - time.monotonic()) > 0:
                    connection.settimeout(left)
                    if not self.environ["wsgi.input"].read(65_536):
                        break
            finally:
                connection.settimeout(before)


def read_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object (RFC 8259, UTF-8). Raises Problem, which repeats nothing of the body."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_not_a_number)
        # A lone "\ud800" is JSON, but no character: nothing could pass it on.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise Problem("invalid_json", "the body is not UTF-8, or has half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise Problem(
            "invalid_json", f"the body is not JSON: line {error.lineno}, column {error.colno}"
        ) from None
    except (RecursionError, ValueError):
        # A ValueError that isn't a decode error is an integer of more digits than Python converts.
        raise Problem("invalid_json", "the body is nested too deeply or has too large a number") from None
    if not isinstance(value, dict):
        raise Problem("invalid_json", "the body is JSON, but not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Problem("invalid_json", "the body has the same member twice")
    return members


def _not_a_number(_: str) -> NoReturn:
    raise Problem("invalid_json", "NaN and Infinity are not JSON")
