"""How many creates a second: 32 callers over REST, and a file."""

from __future__ import annotations

from bench.asked import Asked
from bench.box import SHELL_GROUND, Box, opened
from bench.calls import together
from bench.measure import median, percentile
from bench.rivals import Shell, sold
from bench.table import Bar, Cell, Result, Table
from tests.lab.errors import LabError

QUESTION = "Creates a second: 32 callers over REST, and `account import`"
CALLERS = 32
CREATES = 2_000
SHELL_CREATES = 100


def run(asked: Asked) -> Result:
    result = Result("creates", QUESTION, asked.accounts)
    for backend in asked.backends:
        with opened(asked, backend) as box:
            _measure(box, result)
    result.notes.append(
        "REST: with all accounts present, each answered when it is applied. Import: into an empty database, the "
        "program from its start to its end, keys made on the way; settled: from its end until all is in the kernel. "
        f"shell: one after the other, the first {SHELL_CREATES} on an empty box, where it is fastest."
    )
    return result


def _measure(box: Box, result: Result) -> None:
    count = box.asked.accounts
    filled = box.fill(count)
    restore = box.cold_restore()
    by_shell = _shell_rate(box)
    creates = min(CREATES, count)
    seen = together(box, CALLERS, creates)
    if seen["error"]:
        raise LabError(f"a create was refused: {seen['error']}")
    rate, imported = creates / seen["seconds"], count / filled.imported
    applied = count / (filled.imported + filled.settled)
    box.asked.say(f"{rate:.0f} creates a second, {imported:.0f} imported a second; shell {by_shell:.0f}")
    times = [seconds * 1e3 for seconds in seen["times"]]
    rows: list[list[Cell]] = [
        ["REST, 32 callers", creates, rate, rate / by_shell, *_spread(times), seen["pending"]],
        ["import, database", count, imported, imported / by_shell, None, None, None],
        ["import, applied", count, applied, applied / by_shell, None, None, None],
        ["shell", SHELL_CREATES, by_shell, 1.0, None, None, None],
    ]
    columns: tuple[str, ...] = ("way", "count", "a second", "against shell", "p50, ms", "p99, ms", "pending")
    result.tables.append(Table(f"Creates, {box.backend}", columns, rows))
    columns = ("import, s", "settled after its end, s", "cold restore, s", "settled / restore")
    settled = [filled.imported, filled.settled, restore, filled.settled / restore]
    result.tables.append(Table(f"After an import, {box.backend}", columns, [settled]))
    name, full = box.backend, box.asked.is_full_size
    result.bars += [
        Bar(f"{name}: creates by 32 callers", rate, 200.0, "a second", at_most=False, judged=full),
        Bar(f"{name}: import into the database", imported, 2_000.0, "a second", at_most=False, judged=full),
        Bar(f"{name}: settled against cold restore", filled.settled / restore, 1.2, "x", judged=full),
    ]


def _shell_rate(box: Box) -> float:
    """Accounts a second."""
    accounts = sold(box.lab)[:SHELL_CREATES]
    shell = Shell(box.lab, SHELL_GROUND)
    shell.prepare([])
    return len(accounts) / shell.measure(accounts, [len(accounts)]).seconds[len(accounts)]


def _spread(times: list[float]) -> tuple[float, float]:
    return median(times), percentile(times, 0.99)
