"""The socket side of the HTTP door: uvicorn on h11, with a bound on everything that a client can make us wait for.

h11 reads the protocol, and nothing here does: an offer to speak something else (Upgrade) is left unanswered and the
request is served as it is, trailers are read and forgotten, whatever does not belong to a request ends the connection.
Why this server: docs/decisions/0013-the-http-server.md. uvicorn bounds an idle connection only. Here a request's head
has 10 seconds, 32 kB and 128 lines, its body 30 seconds, and a client that reads nothing of its answer 30 seconds; one
that reads slowly has all the time it needs. What is refused before the application sees all of it is answered in the
envelope too, unless its own answer has begun. Who has nothing more to say (a FIN) still gets the answers to what he
asked; asyncio's TLS cannot: there the end of one direction (close_notify) is the end of both. Never looks at what is
asked; made by gateway/wiring.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.http.admission import PLACE, Admission, Network, Place
from gateway.http.certificate import Certificate
from gateway.http.door import Door
from gateway.http.envelope import refusal
from gateway.http.reader import HEAD_LINES, TOO_MANY_LINES, Reader, Refused

HEAD_SECONDS = 10.0
HEAD_BYTES = 32_768  # also of trailers, and of a chunk's own head
SIP_BYTES = 2_048  # taken from a connection at a time; 300 chunks of one byte, which are 10 ms of work
DROPPED_BYTES = 1 << 18  # of what a client sends that is not read any more
CRUMB_BYTES = 8  # a chunked body is refused that has a line end more often than each so many bytes
BODY_SECONDS = 30.0
WRITE_SECONDS = 30.0
BYTES_ACKED = slice(120, 128)  # of struct tcp_info, linux/tcp.h
TCP_CLOSE = 7  # its first byte, where the client's machine has answered RST; net/tcp_states.h
LOOK_SECONDS = 0.01, 0.32  # how soon it is seen that who ended his side has hung up: the first time, and ever
CLOSE_SECONDS = 2.0  # for the other side of TLS to close its own, when it has all that we sent
IDLE_SECONDS = 30  # between two requests of a connection
STOP_SECONDS = 8  # for requests that are under way when we are told to stop

HEAD, BODY, NOTHING = "head", "body", ""  # what the client owes us


class Sips(asyncio.BufferedProtocol):
    """Hands a connection's bytes on some at a time, so that no client's flood is read before others had their turn."""

    def __init__(self, inner: BoundedProtocol) -> None:
        self._inner = inner
        self._buffer = memoryview(bytearray(SIP_BYTES))
        # What else a transport tells.
        self.connection_made = inner.connection_made  # type: ignore[method-assign,assignment]
        self.connection_lost = inner.connection_lost  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]
        self.eof_received = inner.eof_received  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._inner.data_received(bytes(self._buffer[:nbytes]))


class BoundedProtocol(H11Protocol):
    """One connection. Two timers: for what the client sends, and for what it does not read."""

    place: Place
    conn: Reader
    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _closing: asyncio.TimerHandle | None = None
    _looking: asyncio.TimerHandle | None = None
    _has_ended = False  # the client: it sends nothing any more
    _owed: tuple[str, object] = (NOTHING, None)  # and in which request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.conn = Reader(HEAD_BYTES)
        super().connection_made(transport)
        self.place.end = transport.abort
        self._time_sending()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._sending, self._reading, self._closing, self._looking, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self.place.leave()

    # -- what the client sends --

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        owes = self._owes()
        if owes == BODY and self.cycle is not None and self.cycle.message_event.is_set():
            self.flow.pause_reading()  # until the application has asked for what has come
        if owes and self.conn.trailing_data[0].count(b"\n") > HEAD_LINES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_MANY_LINES)
        elif owes == BODY and self._is_chunked() and data.count(b"\r\n") * CRUMB_BYTES > len(data) > CRUMB_BYTES**2:
            self._refuse(HTTPStatus.BAD_REQUEST, "The request's body comes in crumbs")
        self._time_sending()

    def _is_chunked(self) -> bool:
        return any(name == b"transfer-encoding" for name, _ in self.headers or ())

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._drop_unread()
            self._await_close()
        elif self._has_ended:
            self._end()
        self._time_sending()

    def _drop_unread(self) -> None:
        """What is unread when a socket closes takes the answer with it."""
        with suppress(OSError, ValueError):
            number = self.transport.get_extra_info("socket").fileno()
            for _ in range(DROPPED_BYTES >> 16):
                if not os.read(number, 1 << 16):
                    return

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # -- the end of what it sends --

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays, for the answers to what came before. Whose body ends early hears so."""
        if self.scheme == "https" or not self._is_answering() or self.transport.is_closing():
            return False
        if not self._has_ended:
            if self.conn.their_state is not h11.SEND_BODY and not self._ask_for_life():
                return False
            self._has_ended = True
            self._look_for_reset()
        self._end()
        return True

    def _end(self) -> None:
        """It has sent all that it ever will."""
        if not self._is_answering():
            self._close()
        elif self.conn.their_state is h11.SEND_BODY:
            self._refuse(HTTPStatus.BAD_REQUEST, "The request's body ended early")

    def _ask_for_life(self) -> bool:
        """Who hung up and who waits for his answer have sent the same. What is written tells them apart: whoever is
        gone has a machine that answers RST. False: a create of HTTP/1.0, which knows no answer before the answer;
        nothing is created for who may be gone."""
        if self.conn.our_state is h11.SEND_RESPONSE:
            if self.scope["http_version"] != "1.1":
                return bool(self.scope["method"] != "POST")
            interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(interim))
        return True

    def _look_for_reset(self, seconds: float = LOOK_SECONDS[0]) -> None:
        if self._tcp_info()[:1] == bytes([TCP_CLOSE]):
            self.transport.abort()
        else:
            self._looking = self.loop.call_later(seconds, self._look_for_reset, min(2 * seconds, LOOK_SECONDS[1]))

    def _time_sending(self) -> None:
        """The time begins anew with each part of each request, and not with each packet."""
        owed = (self._owes(), self.cycle)
        if owed == self._owed:
            return
        self._owed = owed
        if self._sending is not None:
            self._sending.cancel()
        seconds = {HEAD: HEAD_SECONDS, BODY: BODY_SECONDS}.get(owed[0])
        self._sending = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

    def _owes(self) -> str:
        if self.conn.their_state is h11.SEND_BODY:
            return BODY
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            return HEAD
        return NOTHING  # between two requests uvicorn has a timer of its own

    def _too_slow(self) -> None:
        if self._owed[0] == HEAD and self.conn.trailing_data[0]:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request took too long")
        else:
            self._close()

    # -- what it does not read --

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            self._await_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _await_reading(self) -> None:
        self._reading = self.loop.call_later(WRITE_SECONDS, self._has_read, self._taken())

    def _has_read(self, before: int) -> None:
        if self._taken() > before:
            self._await_reading()
        else:
            self.transport.abort()

    def _taken(self) -> int:
        """Bytes that the client's machine has taken, ever."""
        return int.from_bytes(self._tcp_info()[BYTES_ACKED], sys.byteorder)

    def _tcp_info(self) -> bytes:
        try:
            connection = self.transport.get_extra_info("socket")
            return bytes(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED.stop))
        except (OSError, AttributeError):
            return b""

    def _unread(self) -> int:
        """Bytes of answers that the client's machine has not taken yet: in our buffers and in the kernel's."""
        ours = int(self.transport.get_write_buffer_size())
        try:
            number = self.transport.get_extra_info("socket").fileno()
            waiting = fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            return ours
        return ours + int(struct.unpack("i", waiting)[0])

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # it still reads the last answer
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()
            self._await_close()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._await_close()

    def _await_close(self) -> None:
        """TLS closes when the other side has closed its own, too. Who says nothing, and has all, is not waited for."""
        if self._closing is not None:
            self._closing.cancel()
        self._closing = self.loop.call_later(CLOSE_SECONDS, self._end_silent)

    def _end_silent(self) -> None:
        if not self._unread():
            self.transport.abort()
            return
        if self._reading is None:
            self._await_reading()
        self._await_close()

    # -- what never reaches the application --

    def send_400_response(self, msg: str) -> None:
        error = sys.exc_info()[1]
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        text = str(error) if isinstance(error, Refused) else {431: "The request's head is too large"}.get(hint)
        self._refuse(HTTPStatus(hint if text else 400), text or "Not an HTTP request")

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Whatever the application has heard of it, it hears of no more: not half a body, and no end of one."""
        if self.transport.is_closing():
            return
        if not self._is_answering() or not self.cycle.response_started:  # nothing may be mixed into an answer
            self.transport.write(refusal(status, text))
        self._close()

    def _close(self) -> None:
        """The application hears that the client is gone: it is, to us."""
        self._drop_unread()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._await_close()


class Listener(uvicorn.Server):
    """Serves an application on bound sockets until `should_exit` is set. Leaves signals to the caller."""

    def __init__(
        self,
        app: ASGIApp,
        certificate: Certificate | None,
        on_ready: Callable[[], None],
        trusted: Iterable[Network] = (),
    ) -> None:
        self._admission = Admission(trusted)
        self._certificate = certificate
        self._on_ready = on_ready
        super().__init__(
            uvicorn.Config(
                _only_sound(app),
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
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        doors = [Door(each, self._admission, self._certificate, self._begin) for each in sockets or ()]
        self.servers = doors  # type: ignore[assignment]  # uvicorn only closes them
        self.started = True
        self._on_ready()

    def _begin(self, place: Place) -> Sips:
        protocol = BoundedProtocol(self.config, self.server_state, {PLACE: place})
        protocol.place = place
        return Sips(protocol)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _only_sound(app: ASGIApp) -> ASGIApp:
    """Refuses two things that h11 lets through: a length told twice, of which a proxy may believe the other one (RFC
    9112, 6.1), and CONNECT, after whose success everything that follows would be a tunnel's."""

    async def sound(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            names = {name for name, _ in scope["headers"]}
            if {b"content-length", b"transfer-encoding"} <= names or scope["method"] == "CONNECT":
                head, _, body = refusal(HTTPStatus.BAD_REQUEST, "Not an HTTP request").partition(b"\r\n\r\n")
                headers = [tuple(line.split(b": ", 1)) for line in head.split(b"\r\n")[1:]]
                await send({"type": "http.response.start", "status": 400, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
            if b"transfer-encoding" in names:
                receive, send = _ending_unread(receive, send, lambda: True)
            elif b"content-length" in names and (b"content-length", b"0") not in scope["headers"]:
                receive, send = _ending_unread(receive, send, lambda: not scope["state"][PLACE].is_known)
        await app(scope, receive, send)

    return sound


def _ending_unread(receive: Receive, send: Send, ends: Callable[[], bool]) -> tuple[Receive, Send]:
    """An answer before the body was read ends the connection, and says so: a chunked one's, since to take the rest
    apart would cost us, not him; and a stranger's, who keeps no place by a body that never comes. A proxy must not send
    somebody else's request after it."""
    is_read = False

    async def reading() -> Message:
        nonlocal is_read
        message = await receive()
        is_read = is_read or not message.get("more_body", False)
        return message

    async def answering(message: Message) -> None:
        if message["type"] == "http.response.start" and not is_read and ends():
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return reading, answering
