"""How long until everything is there again after a boot: the agent, against a batch and a shell."""

from __future__ import annotations

from bench.answers import answers
from bench.asked import Asked
from bench.box import BATCH_GROUND, SHELL_GROUND, Box, opened, wipe
from bench.measure import median, percentile, sizes
from bench.rivals import Batch, Shelled, shell_for
from bench.table import Bar, Cell, Result, Table

QUESTION = "Cold restore into an empty kernel, from the start of the agent to the last peer"
ROUNDS = 3  # agent and batch by turns
STEPS = ("links", "classes", "marks", "peers")


def run(asked: Asked) -> Result:
    result = Result("restore", QUESTION, asked.accounts)
    for backend in asked.backends:
        with opened(asked, backend) as box:
            _measure(box, result)
    result.notes.append(
        "batch: prepared files with the same objects in the same shape, loaded by ready tools. shell: one process for "
        "each step of each account; a time with * is carried there by its own growth, linear and square, fitted to "
        "what was measured. Answers: a Status call every 5 ms during one more restore, which is not timed."
    )
    return result


def _measure(box: Box, result: Result) -> None:
    batch = Batch(box.lab, BATCH_GROUND)
    rows: list[list[Cell]] = []
    steps: list[list[Cell]] = []
    waits: list[list[Cell]] = []
    ratios: dict[int, float] = {}
    agents: dict[int, float] = {}
    for count in sizes(box.asked.accounts):
        box.fill(count)
        batch.prepare()
        pairs = []
        for _ in range(ROUNDS):
            agent, against = _pair(box, batch)
            pairs.append((agent, against["total"]))
            box.asked.say(f"restore of {count:,}: agent {agent:.2f} s, batch {against['total']:.2f} s")
        wipe(box.lab, BATCH_GROUND)
        with answers(box) as taken:
            box.cold_restore()  # to be filled further too, and for the shell to read the interfaces
        waits.append([count, len(taken), median(taken), percentile(taken, 0.99), max(taken)])
        ratios[count] = median(agent / ready for agent, ready in pairs)
        agents[count] = median(agent for agent, _ in pairs)
        rows.append([count, agents[count], median(ready for _, ready in pairs), ratios[count]])
        steps.append([count, *(against[step] for step in STEPS)])
    shell = shell_for(box, SHELL_GROUND)
    columns = ("accounts", "calls", "p50, ms", "p99, ms", "longest, ms")
    result.tables += [
        _table(box.backend, rows, shell),
        _step_table(box.backend, steps),
        Table(f"The agent's answers while it restores, {box.backend}", columns, waits),
    ]
    count = box.asked.accounts
    times = shell.at(count)[0] / agents[count]
    full = box.asked.is_full_size
    result.bars += [
        Bar(f"{box.backend}: cold restore against batch", ratios[count], 1.5, "x", judged=full),
        Bar(f"{box.backend}: faster than shell", times, 20.0, "x", at_most=False, judged=full),
    ]


def _pair(box: Box, batch: Batch) -> tuple[float, dict[str, float]]:
    """Agent, then batch, each while the other's host is empty.

    The kernel walks all classes of a device for each new one. How long that takes hangs on where they lie in memory:
    beside twenty thousand others it took two to eight times longer, for either side.
    """
    wipe(box.lab, BATCH_GROUND)
    taken = box.cold_restore()
    box.empty()
    return taken, batch.run()


def _table(backend: str, rows: list[list[Cell]], shell: Shelled) -> Table:
    columns = ("accounts", "agent, s", "batch, s", "agent / batch", "shell, s", "shell / agent")
    whole: list[list[Cell]] = []
    for count, agent, ready, ratio in rows:
        assert isinstance(count, int) and isinstance(agent, float)
        seconds, carried = shell.at(count)
        whole.append([count, agent, ready, ratio, f"{seconds:,.1f}{'*' if carried else ''}", seconds / agent])
    return Table(f"Cold restore, {backend}", columns, whole)


def _step_table(backend: str, steps: list[list[Cell]]) -> Table:
    return Table(f"Where the batch's time goes, {backend}", ("accounts", *(f"{step}, s" for step in STEPS)), steps)
