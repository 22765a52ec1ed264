"""Connections to PostgreSQL, and what is done while it is silent.

A server that is gone says so, or its host does. One that is cut off says nothing: each connection would be waited for,
by each caller anew. So a connection over which nothing comes back for SILENT_SECONDS is given up by the kernel, idle or
not; and once a new one was waited for in vain, callers are told at once, and one task looks for the server until it
answers. The other side hears as little: it is asked to give up as well, or rows stay locked for those who do reach it.

Owns: how connections are made. Never knows a table, nor what a transaction is. Called by engine.py.
"""

from __future__ import annotations

import asyncio
import socket
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlencode

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

CONNECT_SECONDS = 5.0
SILENT_SECONDS = 3.0
LEAST_SECONDS = 0.5  # for a new connection, however late a caller comes to need one
LOOK_SECONDS = 0.2  # between looks for a server that was silent
STATEMENT_SECONDS = 30
POOL_SIZE = 10

# tcp(7): the first probe after a second of silence, then one each second. How long it goes on is TCP_USER_TIMEOUT's.
_PROBES = ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_USER_TIMEOUT, round(SILENT_SECONDS * 1000)))

# Until when (by the loop's clock) whoever asks for a connection now has patience.
give_up: ContextVar[float] = ContextVar("give_up")


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """One that notices when nothing comes back."""

    __slots__ = ()

    def __init__(self, protocol: Any, transport: asyncio.Transport, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        end = transport.get_extra_info("socket")
        if end.family != socket.AF_UNIX:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _PROBES:
                end.setsockopt(socket.IPPROTO_TCP, option, value)


class Door:
    """The way to one server."""

    def __init__(self) -> None:
        self._looking: asyncio.Task[None] | None = None
        self._answered = 0.0  # when it last did, by the loop's clock

    @property
    def is_silent(self) -> bool:
        return self._looking is not None and not self._looking.done()

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """Raises TimeoutError at once while the server is known to be silent."""
        if self.is_silent:
            raise TimeoutError("PostgreSQL does not answer")
        now = asyncio.get_running_loop().time()
        seconds = min(CONNECT_SECONDS, max(give_up.get(now + CONNECT_SECONDS) - now, LEAST_SECONDS))
        try:
            made = await asyncpg.connect(**options, timeout=seconds, connection_class=_Connection)
        except TimeoutError:
            # Who began to wait while it was silent may end after others have been answered: that says nothing of now.
            if not self.is_silent and self._answered < now:
                self._looking = asyncio.create_task(self._until_it_answers(options))
            raise TimeoutError(f"PostgreSQL did not answer within {seconds:.1f} s") from None
        self._answered = asyncio.get_running_loop().time()
        return made

    async def _until_it_answers(self, options: dict[str, Any]) -> None:
        """Whatever it says: callers hear it themselves from then on."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                found = await asyncpg.connect(**options, timeout=CONNECT_SECONDS)
            except TimeoutError:
                continue
            except Exception:
                return
            self._answered = asyncio.get_running_loop().time()
            found.terminate()
            return

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))


def pool(url: URL, door: Door, lock_seconds: float) -> AsyncEngine:
    """`lock_seconds`: for a connection, and for those who hold what is to be changed."""
    engine = create_async_engine(
        url.set(query={}),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=lock_seconds,
        pool_pre_ping=True,  # the server may have been restarted since
        connect_args={
            # The driver reads these out of a URL of its own only, and what stands beside it wins.
            "dsn": f"postgresql:///?{urlencode(url.query, doseq=True)}",
            "async_creator_fn": door.connect,
            "command_timeout": STATEMENT_SECONDS,
            "server_settings": {"application_name": "wirelane-gateway"},
        },
    )
    # Not as settings of the connection's start: a pooler refuses those that it does not know.
    settings = "; ".join(
        f"SET {name} = '{value}'"
        for name, value in {
            "lock_timeout": f"{lock_seconds * 1000:.0f}ms",
            "statement_timeout": f"{STATEMENT_SECONDS}s",
            "idle_in_transaction_session_timeout": f"{STATEMENT_SECONDS}s",
            "tcp_keepalives_idle": 1,
            "tcp_keepalives_interval": 1,
            "tcp_user_timeout": f"{SILENT_SECONDS * 1000:.0f}ms",
        }.items()
    )

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.run_async(lambda driver: driver.execute(settings))

    return engine
