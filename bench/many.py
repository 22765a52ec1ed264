"""30,000 accounts on one node: near the limit of its marks. Figures, no bars."""

from __future__ import annotations

from bench.asked import FULL_SIZE, Asked
from bench.box import BATCH_GROUND, Box, opened, wipe
from bench.calls import changes
from bench.listing import listed
from bench.measure import median, memory_bytes, percentile
from bench.rivals import Batch
from bench.sample import sampled
from bench.table import Cell, Result, Table

QUESTION = "Three times as many on one node: restore, changes, samples, memory"
CHANGES = 100


def run(asked: Asked) -> Result:
    count = min(3 * asked.accounts, 3 * FULL_SIZE)
    result = Result("many", QUESTION, count)
    columns = ["figure", *asked.backends]
    figures = []
    for backend in asked.backends:
        with opened(asked, backend) as box:
            figures.append(_figures(box, count))
    rows: list[list[Cell]] = [[name, *(each[name] for each in figures)] for name in figures[0]]
    result.tables.append(Table(f"{count:,} accounts on one node", columns, rows))
    return result


def _figures(box: Box, count: int) -> dict[str, float]:
    filled = box.fill(count)
    batch = Batch(box.lab, BATCH_GROUND)
    batch.prepare()
    box.empty()  # each while the other's host is empty, see restore.py
    against = batch.run()["total"]
    wipe(box.lab, BATCH_GROUND)
    restore = box.cold_restore()
    box.asked.say(f"restore of {count:,}: agent {restore:.1f} s, batch {against:.1f} s")
    changed = changes(box, CHANGES)
    sample, listing = sampled(box), listed(box)
    return {
        "import, s": filled.imported,
        "settled after its end, s": filled.settled,
        "cold restore, s": restore,
        "batch, s": against,
        "agent / batch": restore / against,
        "create p50, ms": median(changed.create) * 1e3,
        "create p99, ms": percentile(changed.create, 0.99) * 1e3,
        "edit p50, ms": median(changed.edit) * 1e3,
        "delete p50, ms": median(changed.delete) * 1e3,
        "one full sample, ms of CPU": _number(sample[3]),
        "GET /account, ms": _number(listing[0]),
        "GET /account/NAME, ms": _number(listing[1]),
        "gateway's most, MB": _number(listing[2]),
        "agent's most, MB": memory_bytes(box.pid(), "VmHWM") / 1e6,
    }


def _number(cell: Cell) -> float:
    assert isinstance(cell, float)
    return cell
