"""Where labs keep their files, and which names and ports are taken. Called by lab.py only.

Every lab has a folder BASE/NAME. Locks are taken on the folders themselves, so that nothing stays behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab.errors import LabError

BASE = Path("/var/lib/wirelane-lab")
PORTS = range(18080, 18980)  # below the range that Linux gives to outgoing connections
LOCK_SECONDS = 120.0


def folder(lab: str) -> Path:
    return BASE / lab


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises LabError if others hold it for too long, FileNotFoundError if it is gone."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # else it was removed and made anew meanwhile
                yield
                return
        except BlockingIOError:
            if time.monotonic() > until:
                raise LabError(f"{path} is locked by another command for {LOCK_SECONDS:g} s") from None
            time.sleep(0.1)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked_base() -> Iterator[None]:
    """Hold the lock of all labs: for as long as it takes to choose a name and a port, not longer."""
    while True:
        BASE.mkdir(mode=0o711, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(BASE))
            except FileNotFoundError:
                continue
            yield
            return


def free_ports(count: int) -> int:
    """The first of so many loopback ports in a row that no lab has and nobody listens on. Call under `locked_base`."""
    taken = set[int]()
    for record in BASE.glob("*/lab.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(record.read_text())
            taken |= {*range(found["port"], found["port"] + found["gateways"] + 1)}
    for first in PORTS:
        block = range(first, first + count)
        if taken.isdisjoint(block) and all(_is_free(port) for port in block):
            return first
    raise LabError(f"no free ports in {PORTS.start}-{PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def remove_base() -> None:
    """If this was the last lab."""
    with contextlib.suppress(OSError):
        BASE.rmdir()
