"""What /proc tells, and what can be said of measured numbers: percentiles, slopes, growth. Called by every question."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 1e-9  # /proc/PID/task/TID/schedstat counts nanoseconds


# -- pure ---------------------------------------------------------------------------------------------------------


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that `share` (0-1) of all are not above: nearest rank, so it is one that was measured."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("a percentile of nothing")
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def median(values: Iterable[float]) -> float:
    return percentile(values, 0.5)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points by least squares; 0 for fewer than two places."""
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0


@dataclass(frozen=True, slots=True)
class Growth:
    """A time that grows as `linear * n + square * n * n`: so much for each, and more the more are there already."""

    linear: float
    square: float

    def at(self, count: float) -> float:
        return self.linear * count + self.square * count * count

    @classmethod
    def fitted(cls, points: Sequence[tuple[float, float]]) -> Growth:
        """By least squares of the *relative* errors, so that a small count weighs as much as a large one.

        Neither part is ever below zero: what is carried further by it then grows no faster than was seen.
        """
        # seconds / n = linear + square * n is a straight line; dividing by seconds makes errors relative.
        rows = [(n / seconds, n * n / seconds) for n, seconds in points]
        aa, ab, bb = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
        a, b = (sum(row[i] for row in rows) for i in (0, 1))
        determinant = aa * bb - ab * ab
        if len(points) < 2 or abs(determinant) < 1e-12 * aa * bb:
            return cls(a / aa, 0.0)
        linear, square = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
        if square < 0:
            return cls(a / aa, 0.0)
        if linear < 0:
            return cls(0.0, b / bb)
        return cls(linear, square)


def sizes(accounts: int) -> list[int]:
    """At which counts a growth is shown: 100, 1,000, ... and the last."""
    return [*(count for count in (100, 1_000, 10_000, 30_000) if count < accounts), accounts]


# -- processes ----------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """CPU that the living threads of a process have used, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) * CPU_SECONDS


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """`VmRSS`, or `VmHWM` for the most it ever was."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"process {pid} tells no {field}")
    return int(found[1]) * 1024


# -- the machine --------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cores": str(os.cpu_count()),
        "processor": model[1] if model else platform.machine(),
        "memory": f"{int(memory[1]) / 1e6:.0f} GB" if memory else "",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
