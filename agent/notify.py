"""Tells systemd that the agent is ready, alive or stopping (sd_notify(3)). Does nothing where nobody asked.

The gateway has a copy of its own: the two processes share nothing but the wire.
"""

from __future__ import annotations

import contextlib
import os
import socket


def tell_systemd(message: str) -> None:
    """Sends one message, for example READY=1. A supervisor that does not listen is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.sendto(message.encode(), address)


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear WATCHDOG=1 at least; None = it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    asked = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1_000_000 if asked and microseconds.isdigit() and int(microseconds) else None
