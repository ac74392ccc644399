"""A mirror on this machine that misbehaves as it is told."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Seen:
    """What a request asked for."""

    path: str
    range: str | None
    if_range: str | None


@dataclass
class Mirror:
    """Files by path, and how they are served.

    Attributes:
        cuts: for each coming request the number of bytes of its body after which the connection ends; None
            for a whole body.
        refusals: for each coming request a status and headers instead of the file.
        versions: for each coming request for a path, what its file has become.
        ranges: whether Range is understood.
        portion: how many bytes a ranged answer has at most.
        etag: None sends none.
        announce: whether the length is sent.
        stall: waited for after a cut body instead of closing, so that only a timeout ends it.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: deque[int | None] = field(default_factory=deque)
    refusals: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    versions: dict[str, deque[bytes]] = field(default_factory=dict)
    ranges: bool = True
    portion: int | None = None
    etag: Callable[[bytes], str | None] = lambda data: f'"{hash(data)}"'
    announce: bool = True
    stall: threading.Event | None = None
    seen: list[Seen] = field(default_factory=list)
    sent: int = 0
    address: str = ""

    def ranges_of(self, name: str) -> list[str | None]:
        return [request.range for request in self.seen if request.path == f"/{name}"]


@contextmanager
def serving(mirror: Mirror) -> Iterator[Mirror]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            mirror.seen.append(Seen(self.path, self.headers.get("Range"), self.headers.get("If-Range")))
            if mirror.refusals:
                status, headers = mirror.refusals.popleft()
                self._head(status, headers | {"Content-Length": "0"})
                return
            name = self.path.removeprefix("/")
            if mirror.versions.get(name):
                mirror.files[name] = mirror.versions[name].popleft()
            data = mirror.files.get(name)
            if data is None:
                self._head(404, {"Content-Length": "0"})
                return
            self._file(data)

        def _file(self, data: bytes) -> None:
            etag = mirror.etag(data)
            headers = {"ETag": etag} if etag else {}
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            same = self.headers.get("If-Range") in {None, etag}
            start = int(asked[1]) if asked and same and mirror.ranges else 0
            if start and start >= len(data):
                self._head(416, {"Content-Length": "0"})
                return
            body = data[start:][: mirror.portion if start else None]
            if mirror.announce:
                headers["Content-Length"] = str(len(body))
            else:
                headers["Connection"] = "close"
            if start:
                headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(data)}"
            self._head(206 if start else 200, headers)
            cut = mirror.cuts.popleft() if mirror.cuts else None
            for begin in range(0, len(body[:cut]), 1 << 16):
                self.wfile.write(body[:cut][begin : begin + (1 << 16)])
                mirror.sent += 1 << 16
            if cut is not None and mirror.stall:
                mirror.stall.wait(30)
            if cut is not None or not mirror.announce:
                self.close_connection = True

        def _head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def handle(self) -> None:
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        mirror.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield mirror
        finally:
            if mirror.stall:
                mirror.stall.set()
            server.shutdown()
            thread.join()
