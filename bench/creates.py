"""How many creates a second: 32 callers over REST, and a file."""

from __future__ import annotations

from dataclasses import dataclass

from bench.asked import Asked
from bench.box import SHELL_GROUND, Box, Filled, opened
from bench.calls import together
from bench.measure import median, percentile, sizes
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
        seen = []
        for count in sizes(asked.accounts):
            with opened(asked, backend) as box:
                seen.append(_measured(box, count))
        _tell(result, backend, seen, asked.is_full_size)
    result.notes.append(
        "REST: with all accounts present, each answered when it is applied. Import: into an empty database, the "
        "program from its start to its end, keys made on the way; settled: from its end until all is in the kernel. "
        f"shell: one after the other, the first {SHELL_CREATES} on an empty box, where it is fastest."
    )
    return result


@dataclass(frozen=True, slots=True)
class Seen:
    filled: Filled
    restore: float  # seconds
    shell: float  # accounts a second
    creates: int
    seconds: float  # for all the creates
    times: list[float]  # of each, in ms
    pending: int

    @property
    def rate(self) -> float:
        return self.creates / self.seconds

    @property
    def imported(self) -> float:
        """A second."""
        return self.filled.count / self.filled.imported

    @property
    def settled(self) -> float:
        """Against a cold restore."""
        return self.filled.settled / self.restore


def _measured(box: Box, count: int) -> Seen:
    filled = box.fill(count)
    restore = box.cold_restore()
    by_shell = _shell_rate(box)
    answer = together(box, CALLERS, CREATES)
    if answer["error"]:
        raise LabError(f"a create was refused: {answer['error']}")
    times = [seconds * 1e3 for seconds in answer["times"]]
    seen = Seen(filled, restore, by_shell, CREATES, answer["seconds"], times, answer["pending"])
    box.asked.say(
        f"beside {count:,}: {seen.rate:.0f} creates a second; {seen.imported:.0f} imported; shell {by_shell:.0f}"
    )
    return seen


def _tell(result: Result, backend: str, all_seen: list[Seen], full: bool) -> None:
    rest: list[list[Cell]] = []
    imports: list[list[Cell]] = []
    for seen in all_seen:
        count, filled, by_shell = seen.filled.count, seen.filled, seen.shell
        p50, p99 = median(seen.times), percentile(seen.times, 0.99)
        rest.append([count, seen.creates, seen.rate, p50, p99, seen.pending, by_shell, seen.rate / by_shell])
        imports.append([count, filled.imported, seen.imported, filled.settled, seen.restore, seen.settled])
    columns: tuple[str, ...] = ("accounts", "creates", "a second", "p50, ms", "p99, ms", "pending", "shell, a second")
    result.tables.append(Table(f"Creates by {CALLERS} callers, {backend}", (*columns, "REST / shell"), rest))
    columns = ("accounts", "import, s", "a second", "settled after its end, s", "cold restore, s", "settled / restore")
    result.tables.append(Table(f"Import, {backend}", columns, imports))
    last = all_seen[-1]
    result.bars += [
        Bar(f"{backend}: creates by {CALLERS} callers", last.rate, 200.0, "a second", at_most=False, judged=full),
        Bar(f"{backend}: import into the database", last.imported, 2_000.0, "a second", at_most=False, judged=full),
        Bar(f"{backend}: settled against cold restore", last.settled, 1.2, "x", judged=full),
    ]


def _shell_rate(box: Box) -> float:
    """Accounts a second."""
    accounts = sold(box.lab)[:SHELL_CREATES]
    shell = Shell(box.lab, SHELL_GROUND)
    shell.prepare([])
    return len(accounts) / shell.measure(accounts, [len(accounts)]).seconds[len(accounts)]
