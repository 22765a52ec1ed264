"""The lab's web server, out on the "internet": bytes of any asked size, both ways.

    GET  /bytes/1000000   or /bytes/25M, /bytes/2G (K, M, G: powers of 1000)   that many bytes
    GET  /ip              the address that the request came from
    PUT, POST /anything   reads the body, answers {"received": BYTES}

Run as `python -m tests.lab.internet ADDRESS PORT` inside the internet host; never imported by the product.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIZE = re.compile(r"/bytes/([0-9]{1,15})([kKMG]?)")
UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
BLOCK = bytes(range(256)) * 256
IDLE_SECONDS = 60.0  # a client that vanished frees its thread


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        if match := SIZE.fullmatch(self.path):
            self._send_bytes(int(match[1]) * UNITS[match[2]])
        elif self.path == "/ip":
            self._answer(f"{self.client_address[0]}\n")
        else:
            self._answer(
                "GET /bytes/SIZE (1000, 25M, 2G), GET /ip, PUT or POST anything\n", 200 if self.path == "/" else 404
            )

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self._answer(json.dumps({"received": self._receive()}) + "\n", kind="application/json")

    do_POST = do_PUT

    def _answer(self, text: str, status: int = 200, kind: str = "text/plain") -> None:
        body = text.encode()
        self._head(status, kind, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send_bytes(self, size: int) -> None:
        self._head(200, "application/octet-stream", size)
        left = 0 if self.command == "HEAD" else size
        while left:
            part = BLOCK[: min(left, len(BLOCK))]
            self.wfile.write(part)
            left -= len(part)

    def _receive(self) -> int:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._skip(int(self.headers.get("Content-Length", "0")))
        received = 0
        while size := int(self.rfile.readline().split(b";")[0], 16):
            received += self._skip(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers, up to the empty line
            pass
        return received

    def _skip(self, size: int) -> int:
        left = size
        while left and (part := self.rfile.read(min(left, len(BLOCK)))):
            left -= len(part)
        return size - left

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client went away, or its tunnel did
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """A busy lab would fill the disk."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    Server.address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
