"""Door, gRPC: TCP for gateways on other hosts, with mutual TLS 1.3. A server of its own beside the one on the socket.

It is opened when this node has an identity, and shows each new connection the identity that is in force then: a
renewed one needs no restart, and running calls go on. Only certificates of our authorities get through the handshake;
callers.py looks again at every call. Without an identity it waits for one. Called by wiring.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.errors import IdentityError
from agent.identity import FILE, Identity, load
from agent.rpc.callers import OnlyGateways
from agent.rpc.series import Series

log = logging.getLogger("agent.rpc")

Sibling = Callable[[Sequence[tuple[str, int]], Sequence[Any]], grpc.aio.Server]

LOOK_SECONDS = 1.0  # between looks at the identity's file

OPTIONS = (
    # A handshake that hangs is given up; a silent stranger holds a connection no longer than this.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Every hour a connection begins anew: then a dropped authority bites in the handshake, too. Calls get their time.
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 600_000),
    # Gateways ping each second, and without calls: that is how they notice a cut.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # No more than 64 kB of a snapshot are on their way, so that a short call beside it does not wait behind it.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65536),
)


class Fleet:
    """`listen`: IP:PORT. `directory`: of the identity. `sibling`: see RpcServer. `in_force`: is told each identity that
    comes into force."""

    def __init__(self, listen: str, directory: Path, sibling: Sibling, in_force: Callable[[Identity], None]) -> None:
        self._listen = listen
        self._file = directory / FILE
        self._sibling = sibling
        self._in_force = in_force
        self._seen: object = None  # the stamp of the file that is in force
        self._authorities = b""
        self._series = Series(directory)
        self._shown: grpc.ServerCertificateConfiguration | None = None
        self._server: grpc.aio.Server | None = None
        self._said = ""

    async def run(self) -> None:
        """Opens the door when there is an identity, and follows it, for ever."""
        while True:
            try:
                await self._look()
            except (IdentityError, OSError) as error:
                self._say(str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_seconds)

    async def _look(self) -> None:
        if (seen := _stamp(self._file)) != self._seen and seen is not None:
            self._take(await asyncio.to_thread(load, self._file.parent))
            self._seen = seen
        if self._shown is None:
            self._say("this node is not enrolled yet: nothing listens at listen_fleet until `wirelane-agent enrol`")
        elif self._server is None:
            self._server = await self._opened(self._shown)
        else:
            self._said = ""

    def _take(self, identity: Identity | None) -> None:
        """Every new connection sees this one. That it fits was checked at its birth: of what does not, gRPC says
        nothing, and shows the old one for ever. That it has ended is for gateways to see and to say."""
        if identity is None:
            return
        pair = (identity.key.reveal().encode(), identity.certificate)
        self._shown = grpc.ssl_server_certificate_configuration([pair], identity.authorities)
        self._authorities = identity.authorities
        self._series.read()
        self._in_force(identity)
        log.info("fleet identity=%s until=%s", identity.name, identity.expires.date())

    async def _opened(self, first: grpc.ServerCertificateConfiguration) -> grpc.aio.Server:
        """Raises OSError."""
        _try_to_bind(self._listen)
        server = self._sibling(OPTIONS, [OnlyGateways(lambda: self._authorities, self._series)])
        # Asked at each new connection, on a thread of gRPC's own: what it gets is ready made.
        credentials = grpc.dynamic_ssl_server_credentials(first, lambda: self._shown or first, True)
        try:
            server.add_secure_port(self._listen, credentials)
        except RuntimeError as error:
            raise OSError(f"listen_fleet: {self._listen}: {error}") from None
        await server.start()
        log.info("fleet listen=%s", self._listen)
        return server

    def _say(self, trouble: str) -> None:
        """Each trouble once."""
        if trouble != self._said:
            log.error("fleet trouble=%r", trouble)
        self._said = trouble


def _try_to_bind(listen: str) -> None:
    """gRPC says that it failed, and not why. Raises OSError."""
    host, _, port = listen.rpartition(":")
    try:
        with socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host.strip("[]"), int(port)))
    except OSError as error:
        raise OSError(f"listen_fleet: {listen}: {error.strerror}; is tried again") from None


def _stamp(path: Path) -> object:
    """Changes when the file does; None = there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_mtime_ns, about.st_ino, about.st_size
