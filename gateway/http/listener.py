"""The socket side of the HTTP door: uvicorn, with a bound on everything that a client can make us wait for or keep.

uvicorn bounds an idle connection only. Here a request's head has 10 seconds and 32 kB, its body 30 seconds, a client
that does not read its answer 30 seconds, and there are at most so many connections. What is refused before the
application sees it is answered in the envelope too. Never looks at what is asked; made by gateway/wiring.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
HEAD_BYTES = 32_768
BODY_SECONDS = 30.0
WRITE_SECONDS = 30.0
IDLE_SECONDS = 30  # between two requests of a connection
CONNECTIONS = 500  # each is a file descriptor; a service has 1024 of them by default
STOP_SECONDS = 8  # for requests that are under way when we are told to stop


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Two timers: for what the client sends, and for what it does not read."""

    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = False
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections, try again")
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._sending, self._reading):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    # -- what the client sends --

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self._in_head and not self._in_body:
            self._expect_head()
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large")

    def on_message_begin(self) -> None:
        if not self._in_head:  # the second of two requests in one packet
            self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._time_sending(BODY_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._time_sending(None)
        super().on_message_complete()

    def _expect_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._time_sending(HEAD_SECONDS)

    def _time_sending(self, seconds: float | None) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self._sending = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        if self._in_head and self._head_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request took too long")
        else:
            self.transport.close()

    # -- what it does not read --

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    # -- what never reaches the application --

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "Not an HTTP request")

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # else an answer is under way: nothing may be mixed in
            body = json.dumps({"error": text, "msg": "", "status": "error"}).encode()
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()


class Listener(uvicorn.Server):
    """Serves an application on bound sockets until `should_exit` is set. Leaves signals to the caller."""

    def __init__(self, app: ASGIApp, tls: ssl.SSLContext | None, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # the journal writes ours, without secrets
                server_header=False,
                proxy_headers=False,  # access.py knows which proxies to believe
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS,
                ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound_socket(address: str, port: int) -> socket.socket:
    """Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(1024)
    except BaseException:
        listening.close()
        raise
    return listening


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """Raises OSError (ssl.SSLError is one)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context
