"""How long one create takes until it is applied, with few and with many accounts present."""

from __future__ import annotations

from bench.asked import Asked
from bench.box import SHELL_GROUND, Box, opened
from bench.calls import Changed, changes
from bench.measure import median, percentile, sizes
from bench.rivals import Shell, sold
from bench.table import Bar, Cell, Result, Table

QUESTION = "One create over REST, answered when it is applied"
CHANGES = 300
WARM_UP = 20
SHELL_CHANGES = 20
BARS = {"iptables": (60.0, 120.0), "nftables": (15.0, 40.0)}  # ms: p50, p99
GROWTH = 1.5  # of p50, from 100 accounts to all; nftables
COLUMNS = ("accounts", "create p50, ms", "create p99, ms", "edit p50, ms", "delete p50, ms", "pending", "shell, ms")


def run(asked: Asked) -> Result:
    result = Result("change", QUESTION, asked.accounts)
    for backend in asked.backends:
        with opened(asked, backend) as box:
            _measure(box, result)
    result.notes.append(
        f"{CHANGES} calls one after the other over one connection. shell: the seven processes for one account more, "
        f"p50 of {SHELL_CHANGES}, beside as many accounts with flat rules."
    )
    return result


def _measure(box: Box, result: Result) -> None:
    rows: list[list[Cell]] = []
    seen: dict[int, Changed] = {}
    for count in sizes(box.asked.accounts):
        box.fill(count)
        changes(box, WARM_UP)
        one = seen[count] = changes(box, CHANGES)
        by_shell = _shell(box)
        p50, p99 = median(one.create) * 1e3, percentile(one.create, 0.99) * 1e3
        box.asked.say(f"create beside {count:,}: p50 {p50:.1f} ms, p99 {p99:.1f} ms; shell {by_shell * 1e3:.0f} ms")
        edit, delete = median(one.edit) * 1e3, median(one.delete) * 1e3
        rows.append([count, p50, p99, edit, delete, one.pending, by_shell * 1e3])
    result.tables.append(Table(f"One change, {box.backend}", COLUMNS, rows))
    _judge(box, result, seen)


def _shell(box: Box) -> float:
    """Seconds for one account more."""
    accounts = sold(box.lab)
    few = min(SHELL_CHANGES, len(accounts) // 2)
    shell = Shell(box.lab, SHELL_GROUND)
    shell.prepare(accounts[:-few])
    stamps = shell.measure(accounts[-few:], range(1, few + 1), already=len(accounts) - few).seconds
    times = [stamps[number] - stamps.get(number - 1, 0.0) for number in stamps]
    return median(times)


def _judge(box: Box, result: Result, seen: dict[int, Changed]) -> None:
    name, full = box.backend, box.asked.is_full_size
    first, last = min(seen), max(seen)
    p50, p99 = median(seen[last].create) * 1e3, percentile(seen[last].create, 0.99) * 1e3
    most_p50, most_p99 = BARS[name]
    result.bars += [
        Bar(f"{name}: one create, p50", p50, most_p50, "ms", judged=full),
        Bar(f"{name}: one create, p99", p99, most_p99, "ms", judged=full),
    ]
    if name == "nftables":
        growth = p50 / (median(seen[first].create) * 1e3)
        result.bars.append(Bar(f"{name}: p50 against that at {first}", growth, GROWTH, "x", judged=full))
