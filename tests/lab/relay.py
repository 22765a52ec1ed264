"""Ports of the machine's loopback that lead into lab hosts: how tools here reach a gateway or the database there.

Run as `python -m tests.lab.relay PORT=NAMESPACE=PORT ...`, as root, by lab.py. A connection to the first port of a
triple goes to 127.0.0.1 and the second port in the network namespace of that path; if nobody listens there it is reset.
No packet crosses the lab's network on the way: a gateway that is cut off can still be asked how it feels.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
CONNECT_SECONDS = 5.0
BLOCK = 1 << 16
RESET = struct.pack("ii", 1, 0)  # struct linger: close() sends RST
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def socket_in(namespace: int) -> socket.socket:
    """A TCP socket stays in the network namespace in which it was made, whatever its thread does later."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _enter(namespace)
        try:
            made = socket.socket()
        finally:
            _enter(own)
    finally:
        os.close(own)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while block := await source.read(BLOCK):
            sink.write(block)
            await sink.drain()
        sink.write_eof()


async def _carry(near: tuple[asyncio.StreamReader, asyncio.StreamWriter], namespace: int, port: int) -> None:
    far_socket = socket_in(namespace)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(far_socket, ("127.0.0.1", port))
    except OSError:
        far_socket.close()
        near[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        near[1].close()
        return
    far = await asyncio.open_connection(sock=far_socket)
    try:
        await asyncio.gather(_copy(near[0], far[1]), _copy(far[0], near[1]))
    finally:
        far[1].close()
        near[1].close()


async def serve(triples: list[str]) -> None:
    for triple in triples:
        here, path, there = triple.split("=")
        namespace = os.open(path, os.O_RDONLY)

        async def carry(
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            target: tuple[int, int] = (namespace, int(there)),
        ) -> None:
            await _carry((reader, writer), *target)

        await asyncio.start_server(carry, "127.0.0.1", int(here), backlog=1024)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
