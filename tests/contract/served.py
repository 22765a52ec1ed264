"""A gateway that real clients can reach: the whole product and the real listener, on a loop in a thread of its own.

Only the agents are fakes. For curl, browsers and fuzzers, which block the thread that they are called from.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.http.app import HttpSettings, build_app
from gateway.http.certificate import Certificate
from gateway.http.listener import Listener
from gateway.http.ports import bound_socket
from tests.fakes.product import Product, running_product, services_of

T = TypeVar("T")
DEADLINE_SECONDS = 30


@dataclass
class Served:
    url: str
    access_hash: str
    product: Product
    loop: asyncio.AbstractEventLoop
    database: str  # its URL

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a use case where the product lives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_SECONDS)


@contextmanager
def served(
    database: str, certificate: Certificate | None = None, *, send_buffer: int = 0, **settings: Any
) -> Iterator[Served]:
    """`database`: URL of a migrated database. `certificate`: to speak TLS with. `send_buffer`: bytes, of each
    connection; 0 = as the host has it. `settings`: of HttpSettings, besides the public URL."""
    listening = bound_socket("127.0.0.1", 0)
    if send_buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # its connections have it from it
    url = f"{'https' if certificate else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
    ready, stop = threading.Event(), threading.Event()
    found: list[Served] = []

    async def run() -> None:
        async with running_product(database) as product:
            services = services_of(product)
            access_hash = await product.keys.add("tests", ["127.0.0.1"])
            found.append(Served(url, access_hash.reveal(), product, asyncio.get_running_loop(), database))
            app = build_app(services, HttpSettings(url, **settings))
            listener = Listener(app, certificate, on_ready=ready.set)
            serving = asyncio.create_task(listener.serve([listening]))
            await asyncio.to_thread(stop.wait)
            listener.should_exit = True
            await serving

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="served gateway")
    thread.start()
    try:
        assert ready.wait(DEADLINE_SECONDS), "the gateway did not start"
        yield found[0]
    finally:
        stop.set()
        thread.join(DEADLINE_SECONDS)
        listening.close()
