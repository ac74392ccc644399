"""Where files come from, at any offset: the hub or a mirror over HTTPS, an S3 prefix, a folder.

Nothing here is trusted: the reader of the bytes bounds and hashes them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

import httpx2

from appliance.weights.errors import RequestError, UnreachableError

if TYPE_CHECKING:
    from appliance.weights.pins import Pins

CHUNK = 1 << 20
MAX_REDIRECTS = 5
CONNECT_SECONDS = 20.0
SILENT_SECONDS = 60.0
MAX_RETRY_AFTER = 120.0
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
HUB = "hub"


class InterruptedTransfer(Exception):  # noqa: N818 - an event that is waited out, seldom an error
    """Trying again may help, not before `wait` seconds have passed."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class ChangedContentError(Exception):
    """The source cannot go on where the last transfer ended."""


@dataclass(frozen=True)
class Content:
    """Bytes of a file from `start` on; `size` of the whole file and a `validator` of its version if known."""

    start: int
    size: int | None
    validator: str | None
    chunks: Iterator[bytes]


class Source(Protocol):
    """A place with files."""

    def place(self, name: str) -> str:
        """Return where a file is, for people; never a password."""

    def open(self, name: str, start: int, validator: str | None) -> AbstractContextManager[Content]:
        """Open a file at an offset, if it still is the version that `validator` names; else at 0.

        Raises:
            InterruptedTransfer: now or while the chunks are read.
            ChangedContentError: there is nothing at the offset, or another version.
            UnreachableError: the source does not have or does not give the file.
        """


class Mirror:
    """Files under an https address; http only on this machine."""

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")
        parts = urlsplit(self._base)
        if parts.query or parts.fragment or not parts.hostname:
            raise RequestError(
                "source_invalid", f"{self.place('')} is no plain address", "Give a base address."
            )
        if not _encrypted_or_local(httpx2.URL(self._base)):
            raise RequestError("source_insecure", f"{self.place('')} is not https", "Use the https address.")
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS), follow_redirects=False
        )

    def place(self, name: str) -> str:
        """Return the address without user and password."""
        parts = urlsplit(self._base)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}/{name}".rstrip("/")

    @contextmanager
    def open(self, name: str, start: int, validator: str | None) -> Iterator[Content]:
        """See `Source`."""
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if validator:
                headers["If-Range"] = validator
        url = httpx2.URL(f"{self._base}/{name}")
        try:
            for _ in range(MAX_REDIRECTS + 1):
                with self._client.stream("GET", url, headers=headers) as response:
                    if response.next_request is None:
                        yield self._content(name, start, response)
                        return
                    url = self._redirected(name, url, response.next_request.url)
        except httpx2.TransportError as error:
            raise InterruptedTransfer(f"{type(error).__name__}: {error}") from error
        except httpx2.InvalidURL as error:
            raise UnreachableError(
                "redirect_refused", f"{self.place(name)}: {error}", WRONG_SOURCE
            ) from error
        raise UnreachableError(
            "redirect_refused", f"{self.place(name)} redirects more than {MAX_REDIRECTS} times", WRONG_SOURCE
        )

    def _redirected(self, name: str, origin: httpx2.URL, target: httpx2.URL) -> httpx2.URL:
        # From outside, only https; and a server elsewhere does not send us to services of this machine.
        if not _encrypted_or_local(target) or (_local(target) and not _local(origin)):
            raise UnreachableError(
                "redirect_refused",
                f"{self.place(name)} redirects to {target.scheme}://{target.host}",
                "Only https is followed. " + WRONG_SOURCE,
            )
        return target

    def _content(self, name: str, start: int, response: httpx2.Response) -> Content:
        status, headers = response.status_code, response.headers
        if status in TRANSIENT_STATUS:
            raise InterruptedTransfer(f"HTTP {status}", _retry_after(headers))
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            raise ChangedContentError(f"HTTP {status}")
        if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            raise UnreachableError(
                "file_not_there" if status in {404, 410} else "access_refused",
                f"{self.place(name)}: HTTP {status}",
                WRONG_SOURCE,
            )
        validator = headers.get("ETag", "")
        if not validator.startswith('"'):  # a weak one does not promise the same bytes
            validator = headers.get("Last-Modified", "")
        length, begin = _number(headers.get("Content-Length")), 0
        if status == HTTPStatus.PARTIAL_CONTENT:
            served = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if served is None or int(served[1]) != start:
                raise ChangedContentError("an answer with another range")
            begin, length = start, _number(served[2])
        return Content(begin, length, validator or None, response.iter_raw())


class Bucket:
    """Objects under s3://bucket/prefix, with the credentials and endpoint of the AWS environment."""

    def __init__(self, address: str) -> None:
        try:
            import boto3  # noqa: PLC0415 - needed for this source alone
            from botocore import exceptions  # noqa: PLC0415
        except ImportError as error:
            raise RequestError(
                "boto3_missing", "s3:// needs boto3", "Install it: pip install 'testudo[ops]'."
            ) from error
        self._bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._errors: Any = exceptions
        if not self._bucket:
            raise RequestError("source_invalid", f"{address} names no bucket", "Write s3://BUCKET/PREFIX.")
        try:
            self._client: Any = boto3.Session().client("s3")
        except exceptions.BotoCoreError as error:
            raise RequestError("source_invalid", f"{address}: {error}", WRONG_SOURCE) from error

    def place(self, name: str) -> str:
        """Return the object's address."""
        return f"s3://{self._bucket}/{self._prefix}{name}"

    @contextmanager
    def open(self, name: str, start: int, validator: str | None) -> Iterator[Content]:
        """See `Source`."""
        wanted = {"Bucket": self._bucket, "Key": f"{self._prefix}{name}"}
        if start:
            wanted |= {"Range": f"bytes={start}-"} | ({"IfMatch": validator} if validator else {})
        errors = self._errors
        try:
            answer = self._client.get_object(**wanted)
            total = answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"]
            with closing(answer["Body"]) as body:
                yield Content(start, int(total), answer["ETag"], body.iter_chunks(CHUNK))
        except errors.ClientError as error:
            raise self._refusal(name, error) from error
        except (errors.HTTPClientError, errors.ConnectionError, errors.IncompleteReadError) as error:
            raise InterruptedTransfer(str(error)) from error
        except errors.BotoCoreError as error:
            raise UnreachableError("access_refused", f"{self.place(name)}: {error}", WRONG_SOURCE) from error

    def _refusal(self, name: str, error: Any) -> Exception:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        reason = error.response["Error"].get("Code", status)
        if status in {412, 416}:
            return ChangedContentError(reason)
        if status in TRANSIENT_STATUS:
            return InterruptedTransfer(str(reason))
        code = "file_not_there" if status == HTTPStatus.NOT_FOUND else "access_refused"
        return UnreachableError(code, f"{self.place(name)}: {reason}", WRONG_SOURCE)


class Folder:
    """Files in a local folder. Links are followed, as a hub cache has them: the hash decides."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_dir():
            raise RequestError("source_invalid", f"{folder} is not a folder", WRONG_SOURCE)

    def place(self, name: str) -> str:
        """Return the path."""
        return str(self._folder / name)

    @contextmanager
    def open(self, name: str, start: int, validator: str | None) -> Iterator[Content]:
        """See `Source`."""
        with os.fdopen(open_regular(self._folder / name), "rb") as file:
            facts = os.fstat(file.fileno())
            version = f"{facts.st_mtime_ns} {facts.st_size}"
            if start and validator != version:
                raise ChangedContentError("another version")
            file.seek(start)
            yield Content(start, facts.st_size, version, iter(lambda: file.read(CHUNK), b""))


WRONG_SOURCE = "Check --from; docs/weights.md lists the sources and the files that they must have."


def source_of(address: str, pins: Pins) -> Source:
    """Return the source that an address names: `hub`, https://…, s3://…, file:///…, or a folder.

    Raises:
        RequestError: the address is of no known kind, or not secure.
    """
    try:
        scheme = urlsplit(address).scheme
        httpx2.URL(address)
    except (ValueError, httpx2.InvalidURL) as error:
        # Not the error's text: it may quote a password.
        raise RequestError("source_invalid", "--from is no valid address", WRONG_SOURCE) from error
    if address == HUB:
        if pins.hub is None:
            raise RequestError("source_invalid", "these pins name no hub", "Say where from with --from.")
        return Mirror(pins.hub)
    if scheme in {"http", "https"}:
        return Mirror(address)
    if scheme == "s3":
        return Bucket(address)
    if scheme == "file":
        return Folder(Path(unquote(urlsplit(address).path)))
    if scheme:
        raise RequestError("source_invalid", f"{scheme}:// is no source", WRONG_SOURCE)
    return Folder(Path(address))


def open_regular(path: Path) -> int:
    """Open a file for reading; returns its descriptor.

    Raises:
        UnreachableError: it is missing, unreadable, or a pipe, device or folder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        code = "file_not_there" if isinstance(error, FileNotFoundError) else "access_refused"
        raise UnreachableError(code, f"{path}: {error.strerror}", "Check the folder.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreachableError("access_refused", f"{path} is not a regular file", "Check the folder.")
    return descriptor


def _local(url: httpx2.URL) -> bool:
    return url.host in LOOPBACK


def _encrypted_or_local(url: httpx2.URL) -> bool:
    return url.scheme == "https" or (url.scheme == "http" and _local(url))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _retry_after(headers: httpx2.Headers) -> float:
    return min(float(_number(headers.get("Retry-After")) or 0), MAX_RETRY_AFTER)
