"""Classes that are made on a thread of their own, while the one writer makes something else.

Owns that thread, which lives for one call. Knows nothing of passes. Called by `writer` and `steps`, who have to wait
for `done` before they touch a class again.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from agent.doors import Kernel
from agent.errors import KernelError
from agent.objects import Class, ClassKey, Diff
from agent.parts import CLASSES, Part

Errors = Mapping[Any, KernelError] | KernelError
"""What was refused, by key; or why nothing could be done."""


@dataclass(frozen=True, slots=True)
class Shaping:
    """What is being made, and what becomes of it. A bug in there is raised by `done.result()`."""

    classes: Diff[ClassKey, Class]
    done: Future[Errors]


def shape(kernel: Kernel, classes: Diff[ClassKey, Class]) -> Shaping:
    """Begins. The thread is started here, so it is in the network namespace of the calling thread."""
    beside = ThreadPoolExecutor(1, "classes")
    done = beside.submit(apply, kernel, CLASSES, classes)
    beside.shutdown(wait=False)
    return Shaping(classes, done)


def apply(kernel: Kernel, part: Part[Any, Any], difference: Diff[Any, Any]) -> Errors:
    """Makes the difference in one part of the kernel; what went wrong is answered, not raised."""
    try:
        errors: Mapping[Any, KernelError] = kernel.door(part).apply(difference)
    except KernelError as error:
        return error
    return errors
