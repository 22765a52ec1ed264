"""What a restart of the agent does to a box where everything is right: nothing, soon."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from bench.asked import Asked
from bench.box import BATCH_GROUND, NODE, TABLES, Box, interfaces, opened
from bench.measure import sizes
from bench.rivals import Batch
from bench.table import Bar, Result, Table
from tests.lab.errors import LabError
from tests.lab.services import ROOT
from tests.lab.topology import INTERNET, INTERNET_ADDRESS, UPLINK

QUESTION = "Restart of the agent when everything is right"
CLIENT = "c2"
PORT, PACE = 9_000, 500.0  # packets a second, there and back
ROUNDS = 3
QUIET_SECONDS = 2.0  # of the flow before and after
# Linux tells everybody of a root qdisc that somebody only asked for (tc_get_qdisc); the readings show it is the same.
ONLY_ASKED = re.compile(r"qdisc \S+ 1: dev \S+ root ")
MOVED_BY_TRAFFIC = re.compile(r"^#.*$|\[\d+:\d+\]|direct_packets_stat \d+", re.MULTILINE)
MONITORS = (["tc", "monitor"], ["ip", "monitor", "link", "address", "route", "rule"], ["nft", "monitor"])


def run(asked: Asked) -> Result:
    result = Result("restart", QUESTION, asked.accounts)
    for backend in asked.backends:
        with opened(asked, backend) as box:
            rows = []
            for count in sizes(asked.accounts):
                box.fill(count)
                rows.append(_measured(box))
        _tell(result, backend, rows, asked.is_full_size)
    result.notes.append(
        f"Stopped by SIGTERM and started again, {ROUNDS} times, under {PACE:g} packets a second through the tunnel and "
        "back. A write: a line of `tc monitor`, `ip monitor` or `nft monitor`, a change the agent's log tells of, or a "
        "difference between readings of rules, classes, peers and links before and after. batch: what a restart costs "
        "that builds anew."
    )
    return result


@dataclass(frozen=True, slots=True)
class Seen:
    """Of several restarts together. `ready`: seconds, the longest."""

    accounts: int
    ready: float
    writes: int
    lost: int
    gap: float  # ms, the longest
    batch: float  # seconds


def _measured(box: Box) -> Seen:
    box.lab.connect(CLIENT, "a00003")
    ready, writes, lost, gap = [], 0, 0, 0.0
    for _ in range(ROUNDS):
        seconds = max(QUIET_SECONDS * 2 + 8.0, box.accounts / 1_000)
        with _flow(box, seconds) as flow:
            time.sleep(QUIET_SECONDS)
            taken, written = _restart(box)
            seen = json.loads(flow.communicate(timeout=seconds + 30.0)[0])
        ready.append(taken)
        writes += written
        lost += seen["sent"] - seen["returned"]
        gap = max(gap, seen["longest_gap_ms"])
        box.asked.say(f"ready after {taken:.2f} s, {written} writes, {seen['returned']} of {seen['sent']} came back")
    batch = Batch(box.lab, BATCH_GROUND)
    batch.prepare()
    return Seen(box.accounts, max(ready), writes, lost, gap, batch.run()["total"])


def _tell(result: Result, backend: str, rows: list[Seen], full: bool) -> None:
    columns = ("accounts", "ready, s (longest)", "writes", "lost", "longest gap, ms", "batch, s", "batch / agent")
    cells = [[*astuple(seen), seen.batch / seen.ready] for seen in rows]
    result.tables.append(Table(f"Restart, {backend}", columns, cells))
    last = rows[-1]
    result.bars += [
        Bar(f"{backend}: writes to the kernel", last.writes, 0, "", judged=full),
        Bar(f"{backend}: ready", last.ready, 2.0, "s", judged=full),
        Bar(f"{backend}: packets lost", last.lost, 0, "", judged=full),
    ]


def _restart(box: Box) -> tuple[float, int]:
    """Seconds from the start of the process until it serves, and how many writes were seen."""
    before, log = _shown(box), box.lab.state / f"agent-{NODE}.log"
    told = log.stat().st_size
    with _watched(box) as heard:
        box.lab.stop_agent(NODE)
        taken = box.start_agent()
        box.await_applied(box.accounts)
        time.sleep(0.5)
    passes = re.findall(r"^.* (?:pass failures|drift repaired).*$", log.read_text()[told:], re.MULTILINE)
    after = _shown(box)
    differing = [name for name in before if before[name] != after[name]]
    lines = [line for path in heard for line in path.read_text().splitlines() if not ONLY_ASKED.match(line)]
    for what in (*passes, *lines[:5], *differing):
        box.asked.say(f"written: {what}")
    return taken, len(passes) + len(lines) + len(differing)


@contextmanager
def _watched(box: Box) -> Iterator[list[Path]]:
    """Listens to the kernel's own news of changes; the files are complete at the end."""
    paths, running = [], []
    for number, monitor in enumerate(MONITORS):
        paths.append(box.lab.state / f"monitor{number}")
        with paths[-1].open("w") as file:
            running.append(subprocess.Popen(box.lab.command(NODE, *monitor), stdout=file, stderr=subprocess.DEVNULL))
    time.sleep(0.5)
    try:
        yield paths
    finally:
        for one in running:
            one.send_signal(signal.SIGINT)
            one.wait(10.0)


def _shown(box: Box) -> dict[str, str]:
    """All that the agent can write, without what traffic moves."""

    def read(*command: str, check: bool = True) -> str:
        return box.lab.exec(NODE, *command, check=check).stdout

    links = interfaces(box.lab, NODE)
    shown = {table: read("iptables-legacy-save", "-t", table) for table in TABLES}
    shown["nft"] = read("nft", "-s", "list", "table", "ip", "wirelane", check=False)
    shown["forward"] = read("sh", "-c", "grep . /proc/sys/net/ipv4/conf/*/forwarding")
    for device in (*links, UPLINK):
        for kind in ("qdisc", "class", "filter"):
            shown[f"{kind} {device}"] = read("tc", "-d", kind, "show", "dev", device)
        shown[f"link {device}"] = read("ip", "-o", "link", "show", device)
        shown[f"address {device}"] = read("ip", "-o", "address", "show", device)
    for link in links:  # wireguard-go tells its peers in any order
        shown[f"peers {link}"] = "\n".join(sorted(map(str.strip, read("wg", "showconf", link).split("[Peer]"))))
    return {name: MOVED_BY_TRAFFIC.sub("", text) for name, text in shown.items()}


@contextmanager
def _flow(box: Box, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """The sender; the echo beside it ends with it."""
    program = [sys.executable, "-m", "bench.flow"]
    in_checkout = ["env", f"PYTHONPATH={ROOT}"]
    echo = subprocess.Popen(box.lab.command(INTERNET, *in_checkout, *program, "echo", str(INTERNET_ADDRESS), str(PORT)))
    sending = ["send", str(INTERNET_ADDRESS), str(PORT), str(PACE), str(seconds)]
    time.sleep(0.5)
    sender = subprocess.Popen(
        box.lab.command(CLIENT, *in_checkout, *program, *sending), stdout=subprocess.PIPE, text=True
    )
    try:
        yield sender
        if sender.returncode:
            raise LabError("the flow broke off")
    finally:
        for one in (sender, echo):
            one.kill()
            one.wait()
