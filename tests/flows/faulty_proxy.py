"""A proxy before an S3 server that fails a share of the requests, in the ways in which a network and a busy store do."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>"
BROKEN = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We met an error</Message></Error>"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class Faults:
    """share: of the requests that fail, in turn by each of the kinds. refuse(method, path): which get a 403."""

    share: float = 0.0
    kinds: tuple[str, ...] = ("busy", "error", "reset", "truncated", "hang")
    refuse: Callable[[str, str], bool] = lambda method, path: False
    hang_seconds: float = 3.0
    seen: Counter[str] = field(default_factory=Counter)
    draws: random.Random = field(default_factory=lambda: random.Random(3))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, method: str, path: str) -> str:
        with self.lock:
            kind = "none"
            if self.refuse(method, path):
                kind = "denied"
            elif self.draws.random() < self.share:
                kind = self.kinds[sum(self.seen[kind] for kind in self.kinds) % len(self.kinds)]
            self.seen[kind] += 1
            return kind


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.faults = urlsplit(target), faults
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.server.faults.choose(self.command, self.path)
        if kind in ("busy", "error", "denied"):
            status, text = {"busy": (503, SLOW_DOWN), "error": (500, BROKEN), "denied": (403, DENIED)}[kind]
            self.answer(status, [("Content-Type", "application/xml")], text)
        elif kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif kind == "hang":
            time.sleep(self.server.faults.hang_seconds)
            self.close_connection = True
        else:
            self.forward(body, truncated=kind == "truncated")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def forward(self, body: bytes, truncated: bool) -> None:
        """What the server says; truncated: half of the body under the length of the whole."""
        upstream = HTTPConnection(self.server.target.hostname or "", self.server.target.port)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        own = ("transfer-encoding", "connection", "content-length", "date", "server")
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in own]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.answer(answer.status, headers, data[: len(data) // 2] if truncated else data, length)
        self.close_connection = self.close_connection or truncated

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
