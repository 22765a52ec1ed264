"""Tells systemd how we are (sd_notify(3)), where it listens: ready, alive, stopping. Called by wiring only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket


def tell(state: str) -> None:
    """Sends "READY=1" and its kin; nothing happens outside systemd, or if systemd is gone."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace of unix(7)
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.setblocking(False)
        line.sendto(state.encode(), address)


async def keep_watchdog() -> None:
    """Says every half interval that the loop still turns. Returns at once if nobody watches."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        tell("WATCHDOG=1")
        await asyncio.sleep(int(microseconds) / 2_000_000)
