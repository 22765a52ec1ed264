"""What a connection passes before HTTP: is there room for it, and the TLS handshake, which has a deadline.

One Door for each bound socket. What was counted for a connection is given back when it ends, on whichever side of the
handshake. Made by listener.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from gateway.http.admission import Admission, Place
from gateway.http.certificate import Certificate
from gateway.http.envelope import refusal

HANDSHAKE_SECONDS = 10.0
# For an answer that is still on its way when the connection is closed; who reads nothing is cut off by listener.py.
FLUSH_SECONDS = 3600.0
PAUSE_SECONDS = 0.1  # where the kernel has nothing to accept with: no descriptor, no memory

log = logging.getLogger("gateway.http")


class Door:
    """`begin`: makes the protocol of a connection; it is told its Place, and leaves it when it has ended."""

    def __init__(
        self,
        listening: socket.socket,
        admission: Admission,
        certificate: Certificate | None,
        begin: Callable[[Place], asyncio.BaseProtocol],
    ) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._admission = admission
        self._certificate = certificate
        self._begin = begin
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self._accept())

    def close(self) -> None:
        """Nobody comes in any more; those who have not said anything yet go."""
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._listening)
            except OSError as error:
                log.warning("event=accept-failed reason=%r", error.strerror)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            place = self._admission.enter(str(peer[0]))
            if place is None:
                self._turn_away(connection)
            else:
                self._start(self._let_in(connection, place))

    def _turn_away(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if self._certificate is None:
                connection.setblocking(False)
                connection.send(refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections, try again"))
                connection.recv(65_536)  # what is unread when a socket closes takes the answer with it

    async def _let_in(self, connection: socket.socket, place: Place) -> None:
        task = asyncio.current_task()
        assert task is not None
        place.end = task.cancel  # until its protocol knows better
        secured: dict[str, Any] = {}
        if self._certificate is not None:
            secured = {
                "ssl": self._certificate.context,
                "ssl_handshake_timeout": HANDSHAKE_SECONDS,
                "ssl_shutdown_timeout": FLUSH_SECONDS,
            }
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: self._begin(place), connection, **secured)
        except OSError:  # silence, nonsense, hung up, another version of TLS: a stranger's choice, not for our log
            connection.close()
            place.leave()
        except asyncio.CancelledError:
            connection.close()
            place.leave()
            raise
