"""A place to try things out: a network namespace that nobody else sees and that is gone afterwards.

Owns the throw-away thread; knows nothing of what is tried. Called by the shaper and the probe.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from agent.errors import KernelError

CLONE_NEWNET = 0x40000000  # linux/sched.h; os.unshare exists from Python 3.12 on
T = TypeVar("T")


class NoNamespace(KernelError):
    """This process may not make a network namespace (it lacks CAP_SYS_ADMIN, or the unit restricts namespaces)."""


def in_scratch_namespace(call: Callable[[], T], deadline: float) -> T:
    """What `call` returns or raises, run in a new network namespace with nothing but a loopback that is down.

    On a thread of its own, because a namespace belongs to a thread and a thread cannot be trusted to find back: it
    ends, and the namespace with it. Raises NoNamespace, and KernelError after `deadline` seconds (the thread is then
    left to itself).
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
                raise NoNamespace(f"no scratch network namespace: {os.strerror(ctypes.get_errno())}", retry=False)
            results.append(call())
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="scratch-namespace", daemon=True)
    thread.start()
    thread.join(deadline)
    if errors:
        raise errors[0]
    if not results:
        raise KernelError(f"a trial in a scratch network namespace took longer than {deadline:.0f} s")
    return results[0]
