"""How long the gateway needs to list all accounts, and to show one; and its memory."""

from __future__ import annotations

import random
import time

from bench.asked import Asked
from bench.box import NODE, Box, opened
from bench.calls import Line
from bench.measure import median, memory_bytes, sizes
from bench.table import Bar, Cell, Result, Table
from tests.lab.errors import LabError

QUESTION = "GET /account for all, GET /account/NAME, memory of the gateway"
LISTS, SHOWS = 10, 500
COLUMNS = ("accounts", "all, p50 ms", "one, p50 ms", "gateway's most, MB", "wg show, ms")


def run(asked: Asked) -> Result:
    """The gateway does not know how marks are made, so one backend is enough."""
    result = Result("listing", QUESTION, asked.accounts)
    with opened(asked, asked.backends[0]) as box:
        rows = []
        for count in sizes(asked.accounts):
            box.fill(count)
            rows.append([count, *listed(box)])
    result.tables.append(Table("Listing", COLUMNS, rows))
    full, last = asked.is_full_size, [cell for cell in rows[-1] if isinstance(cell, float)]
    result.bars += [
        Bar("all accounts, p50", last[0], 500.0, "ms", judged=full),
        Bar("one account, p50", last[1], 5.0, "ms", judged=full),
        Bar("memory of the gateway", last[2], 200.0, "MB", judged=full),
    ]
    result.notes.append(
        "wg show: `wg show all dump` on the box itself, which is all that a box without a control plane can list: no "
        "names, no rates, no keys to hand out."
    )
    return result


def listed(box: Box) -> list[Cell]:
    """The cells behind `accounts` of COLUMNS."""
    line, chosen = Line(box), random.Random(1)
    everything = [line.call("GET", "account") for _ in range(LISTS)]
    if len(everything[-1].msg) < box.accounts:
        raise LabError(f"GET /account tells {len(everything[-1].msg)} of {box.accounts} accounts")
    one = [line.call("GET", f"account/a{chosen.randrange(box.accounts):05}") for _ in range(SHOWS)]
    line.close()
    began = time.monotonic()
    box.lab.exec(NODE, "wg", "show", "all", "dump")
    by_tool = time.monotonic() - began
    pid = box.lab.gateway_pid()
    memory = memory_bytes(pid, "VmHWM") / 1e6 if pid else 0.0
    all_ms, one_ms = median(call.seconds for call in everything) * 1e3, median(call.seconds for call in one) * 1e3
    box.asked.say(f"listing {box.accounts:,}: all {all_ms:.0f} ms, one {one_ms:.1f} ms, {memory:.0f} MB")
    return [all_ms, one_ms, memory, by_tool * 1e3]
