"""Throw-away network namespaces: nothing of these tests happens in the namespace of the machine itself.

`namespace` is a fresh one's name; `make_namespace()` gives more; `enter(namespace)` runs code inside it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000  # linux/sched.h
DEADLINE = 60  # seconds for one call inside a namespace
_number = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def setns(namespace: str) -> None:
    """Moves the calling thread (it alone) into a namespace made by `ip netns add`."""
    with open(Path("/run/netns", namespace), "rb") as file:
        if _libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


@contextmanager
def enter(namespace: str) -> Iterator[Callable[..., Any]]:
    """`with enter(ns) as run: run(function, *args)`: calls it on one thread that lives in the namespace.

    Always the same thread, so that sockets and handles that belong to a thread or its namespace can be kept.
    """
    with ThreadPoolExecutor(1, f"in-{namespace}", setns, (namespace,)) as thread:
        yield lambda function, *args, **named: thread.submit(function, *args, **named).result(DEADLINE)


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], str]]:
    """Makes namespaces with loopback up; removes them (and all links inside) afterwards."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made: list[str] = []

    def make() -> str:
        name = f"wlt{os.getpid()}-{next(_number)}"
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=DEADLINE)
        made.append(name)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=DEADLINE)
        return name

    try:
        yield make
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, timeout=DEADLINE)


@pytest.fixture
def namespace(make_namespace: Callable[[], str]) -> str:
    return make_namespace()
