"""Does the agent grow: its memory under a restore and under continuous changes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from bench.asked import Asked
from bench.box import Box, opened
from bench.calls import Line
from bench.measure import memory_bytes, slope
from bench.table import Bar, Cell, Result, Table

QUESTION = "Memory of the agent, and whether it grows under continuous changes"
MOST, FLAT = 160.0, 5.0  # MB
PACE = 20.0  # changes a second, as far as they are applied so fast
LOOK_SECONDS = 2.0
EXTRA = 300  # accounts that come and go
SHOWN_ROWS = 10
Change = Callable[[Line, str], object]


def run(asked: Asked) -> Result:
    result = Result("memory", QUESTION, asked.accounts)
    for backend in asked.backends:
        with opened(asked, backend) as box:
            _measure(box, result)
    result.notes.append(
        f"Creates, edits, disables, enables and deletes of {EXTRA} accounts beside all others, one after the other, at "
        f"most {PACE:g} a second. Growth: slope of the last three quarters (the second half), over their length. Tools "
        "that are started for each change leave nothing in memory, and take it anew each time."
    )
    return result


def _measure(box: Box, result: Result) -> None:
    box.fill(box.asked.accounts)
    box.cold_restore()
    restored = memory_bytes(box.pid()) / 1e6
    seen, done = _churn(box, box.asked.minutes * 60)
    length = seen[-1][0]
    late = [point for point in seen if point[0] >= length / 4]
    half = [point for point in seen if point[0] >= length / 2]
    growth = slope(late) * length * 0.75
    most = memory_bytes(box.pid(), "VmHWM") / 1e6
    step = max(1, len(seen) // SHOWN_ROWS)
    course: list[list[Cell]] = [[f"{at / 60:.1f}", memory] for at, memory in seen[::step]]
    result.tables += [
        Table(
            f"Memory of the agent, {box.backend}",
            ("accounts", "restored, MB", "most, MB", "minutes", "changes", "grown, MB", "second half, MB an hour"),
            [[box.accounts, restored, most, length / 60, done, growth, slope(half) * 3_600]],
        ),
        Table(f"Its course, {box.backend}", ("minutes", "MB"), course),
    ]
    name, full = box.backend, box.asked.is_full_size
    result.bars += [
        Bar(f"{name}: most memory of the agent", most, MOST, "MB", judged=full),
        Bar(f"{name}: growth under changes", growth, FLAT, "MB", judged=full),
    ]


def _churn(box: Box, seconds: float) -> tuple[list[tuple[float, float]], int]:
    """Changes for so long; (second, MB) of the agent on the way, and how many changes were made."""
    line, chosen, there = Line(box), random.Random(1), set[str]()
    pid, began, done = box.pid(), time.monotonic(), 0
    seen: list[tuple[float, float]] = []
    while (now := time.monotonic() - began) < seconds or len(seen) < 4:
        if not seen or now - seen[-1][0] >= min(LOOK_SECONDS, seconds / 8):
            seen.append((now, memory_bytes(pid) / 1e6))
            if len(seen) % 60 == 0:
                box.asked.say(f"{now / 60:.0f} min, {done:,} changes: {seen[-1][1]:.1f} MB")
        _change(line, chosen, there, box.servers)
        done += 1
        time.sleep(max(0.0, began + done / PACE - time.monotonic()) if done / PACE > now else 0.0)
    for name in there:
        line.call("DELETE", f"account/{name}")
    line.close()
    return seen, done


def _change(line: Line, chosen: random.Random, there: set[str], servers: list[str]) -> None:
    name = f"churn{chosen.randrange(EXTRA)}"
    if name not in there:
        values = {"name": name, "wg_name": chosen.choice(servers), "b_download": 10, "b_upload": 10}
        line.call("POST", "account", values)
        there.add(name)
    elif chosen.random() < 0.4:
        line.call("DELETE", f"account/{name}")
        there.remove(name)
    elif chosen.random() < 0.5:
        line.call("PUT", f"account/{name}", {"b_download": chosen.randrange(1, 100)})
    else:
        line.call("PUT", f"account/{name}", {"status": chosen.choice(("enable", "disable"))})
