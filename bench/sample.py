"""What one full reading of marks, classes and peers costs in CPU, against the tools that print the same."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.asked import Asked
from bench.box import NODE, Box, opened
from bench.measure import cpu_seconds, sizes
from bench.table import Bar, Cell, Result, Table
from tests.lab.hosts import NAMESPACES
from tests.lab.processes import inside
from tests.lab.services import ROOT, agent_folder

QUESTION = "CPU of one full sample: marks, classes, peers"
MOST = 250.0  # ms
READINGS = 8.0  # of each part in one probe, the first to warm up
IDLE_SECONDS = 60.0
PROBE_SECONDS = 300.0


def run(asked: Asked) -> Result:
    result = Result("sample", QUESTION, asked.accounts)
    for backend in asked.backends:
        with opened(asked, backend) as box:
            rows = []
            for count in sizes(asked.accounts):
                box.fill(count)
                rows.append([count, *sampled(box)])
            result.tables.append(Table(f"One full sample, {backend}", COLUMNS, rows))
            idle = _idle(box)
            result.tables.append(Table(f"An idle agent, {backend}", ("accounts", "CPU, %"), [[box.accounts, idle]]))
            whole = rows[-1][4]
            assert isinstance(whole, float)
            result.bars.append(Bar(f"{backend}: one full sample", whole, MOST, "ms of CPU", judged=asked.is_full_size))
    result.notes.append(
        "All in ms of CPU, user and kernel, reader's side. wireguard-go: what answering for the peers costs its four "
        "processes, not in the sum; ready tools: iptables-legacy-save or nft, tc and wg, which only print. "
        f"An idle agent: its CPU over {IDLE_SECONDS:g} s, with samples of the marks every 10 s and one resync."
    )
    return result


COLUMNS = ("accounts", "marks", "classes", "peers", "together", "wireguard-go", "ready tools")


def sampled(box: Box) -> list[Cell]:
    """The cells behind `accounts` of COLUMNS."""
    config = agent_folder(box.lab.host(NODE), box.lab.state) / "agent.toml"
    tunnels = _tunnels(box)
    before = sum(map(cpu_seconds, tunnels))
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "bench.sample_probe", str(config)]
    seen: dict[str, Any] = json.loads(box.lab.exec(NODE, *command, seconds=PROBE_SECONDS).stdout)
    answering = (sum(map(cpu_seconds, tunnels)) - before) / READINGS / 2  # the tools asked them too
    parts = [seen["agent"][part] * 1e3 for part in ("marks", "classes", "peers")]
    tools = sum(seen["tools"].values()) * 1e3
    box.asked.say(f"a sample of {box.accounts:,}: {sum(parts):.0f} ms, ready tools {tools:.0f} ms")
    return [*parts, sum(parts), answering * 1e3, tools]


def _tunnels(box: Box) -> list[int]:
    found = inside([NAMESPACES / box.lab.host(NODE).namespace])
    return [one.pid for one in found if Path(f"/proc/{one.pid}/comm").read_text().strip() == "wireguard-go"]


def _idle(box: Box) -> float:
    """Per cent of one CPU."""
    pid = box.pid()
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return 100 * (cpu_seconds(pid) - before) / (time.monotonic() - began)
