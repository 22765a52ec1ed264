"""Runs the rungs of the test ladder in order and sums up: the engine of scripts/test.

A rung is `scripts/check` or one folder of tests under pytest; `release` is the unit rung on the other Debian release,
with an installation and the demo.
All of them run, whatever fails on the way. The VM of `system` has one emulated processor, and `contract` mostly waits:
they run beside the rungs that measure nothing. Those that do (ALONE) have the machine to themselves. The summary shows
every skip with its reason; where CI=true a skip is a failure unless ACCEPTED_SKIPS knows it.
Called by scripts/test only, from the root of the checkout.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

RUNG_SECONDS = 35 * 60  # about twice what the longest rung takes; one that hangs is ended
END_SECONDS = 30  # for fixtures to clean up after an interrupt

BESIDE, ALONE = ("system", "contract"), ("netns", "main_job", "fleet")

RUNGS = {  # name: what pytest is given; "" = one of COMMANDS
    "check": "",
    "unit": "tests/unit",
    "contract": "tests/contract",
    "netns": "tests/netns --ignore=tests/netns/main_job",
    "main_job": "tests/netns/main_job",
    "fleet": "tests/fleet",
    "system": "tests/system",
    "architecture": "tests/architecture",
    "release": "",
}

COMMANDS = {
    "check": ("scripts/check",),
    "release": (
        *("scripts/release", "--", "sh", "-c"),
        "scripts/setup --unit && .venv/bin/python -m pytest -p no:cacheprovider tests/unit &&"
        " WIRELANE_THROWAWAY=yes tests/system/box.sh && exec scripts/demo --once",
    ),
}
NEED_ROOT = {"release": "root is needed for a chroot"}  # of COMMANDS; the tests of a folder skip themselves

ACCEPTED_SKIPS = (  # (test, reason of the skip, why that is no loss), the first two as regular expressions
    (
        *(r"netns\.test_(links|preshared|wireguard)\b", "this kernel has no WireGuard"),
        "tests/system runs it on Debian's kernel",
    ),
    (r"netns\.test_ikev2(_ipv6)?\b", "this kernel has no (ESP|IPsec|XFRM)", "tests/system runs it on Debian's kernel"),
    (r"netns\.main_job\.test_repair\b", "the kernel has WireGuard of its own", "it is about a process of ours"),
)


@dataclass(frozen=True, slots=True)
class Skip:
    test: str
    reason: str

    def accepted(self) -> str:
        """Why this skip is no loss; "" = it is one."""
        for test, reason, why in ACCEPTED_SKIPS:
            if re.search(test, self.test) and re.search(reason, self.reason):
                return why
        return ""


@dataclass(slots=True)
class Outcome:
    rung: str
    status: int = 0
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skips: list[Skip] = field(default_factory=list)

    def read(self, report: Path) -> None:
        """Counts from pytest's own report."""
        for case in ElementTree.parse(report).iter("testcase"):
            skipped = case.find("skipped")
            if skipped is not None:
                self.skips.append(Skip(f"{case.get('classname')}::{case.get('name')}", skipped.get("message") or ""))
            elif case.find("failure") is not None or case.find("error") is not None:
                self.failed += 1
            else:
                self.passed += 1


def run(command: Sequence[str], output: IO[str] | None = None) -> int:
    """The command's status; it is interrupted, later killed, when it exceeds RUNG_SECONDS."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process:
        try:
            return process.wait(RUNG_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"the time limit of {RUNG_SECONDS} s is over", flush=True, file=output)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            return 124


def run_rung(name: str, extra: Sequence[str], reports: Path, output: IO[str] | None = None) -> Outcome:
    print(f"\n== {name}", flush=True, file=output)
    outcome = Outcome(name)
    started = time.monotonic()
    if folder := RUNGS[name]:
        report = reports / f"{name}.xml"
        outcome.status = run([sys.executable, "-m", "pytest", *folder.split(), f"--junitxml={report}", *extra], output)
        if report.exists():
            outcome.read(report)
        if outcome.status == 5 and extra:  # nothing collected: a selection may leave a rung empty
            outcome.status = 0
    elif name in NEED_ROOT and os.geteuid() != 0:
        outcome.skips.append(Skip(name, NEED_ROOT[name]))
        return outcome
    else:
        outcome.status = run(COMMANDS[name], output)
    if outcome.status and not outcome.failed:
        outcome.failed = 1  # a check, or pytest itself could not do its work
    elif not folder:
        outcome.passed = 1
    outcome.seconds = time.monotonic() - started
    return outcome


def run_rungs(names: Sequence[str], extra: Sequence[str], reports: Path) -> list[Outcome]:
    """All of them, in order but for BESIDE and ALONE."""
    beside = [name for name in BESIDE if name in names]
    first = [name for name in names if name not in (*BESIDE, *ALONE)]
    if not beside or not first:
        return [run_rung(name, extra, reports) for name in names]
    with ThreadPoolExecutor(1) as thread, (reports / "beside").open("w+") as output:
        running = thread.submit(lambda: [run_rung(name, extra, reports, output) for name in beside])
        print(f"{', '.join(beside)} beside the next rungs; their output comes when they have ended", flush=True)
        outcomes = [run_rung(name, extra, reports) for name in first] + running.result()
        output.seek(0)
        print(output.read(), flush=True)
    return [*outcomes, *(run_rung(name, extra, reports) for name in names if name in ALONE)]


def sum_up(outcomes: Sequence[Outcome], seconds: float, strict: bool) -> int:
    print("\n== summary")
    for outcome in outcomes:
        losses = sum(1 for skip in outcome.skips if strict and not skip.accepted())
        verdict = "FAILED" if outcome.status or losses else "ok"
        print(
            f"{outcome.rung:<14}{verdict:<8}{outcome.seconds:6.0f} s"
            f"{outcome.passed:6} passed{outcome.failed:5} failed{len(outcome.skips):5} skipped"
        )
    skips = [skip for outcome in outcomes for skip in outcome.skips]
    lost = [skip for skip in skips if strict and not skip.accepted()]
    for skip in skips:
        note = f" ({skip.accepted()})" if skip.accepted() else " (not accepted in CI)" if strict else ""
        print(f"skipped: {skip.test}: {skip.reason}{note}")
    failed = sum(outcome.failed for outcome in outcomes) + len(lost)
    passed = sum(outcome.passed for outcome in outcomes)
    print(f"{passed} passed, {failed} failed, {len(skips) - len(lost)} skipped in {seconds:.0f} s")
    return 1 if failed else 0


def main(arguments: Sequence[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    names, extra = arguments[:cut] or list(RUNGS), arguments[cut + 1 :]
    unknown = [name for name in names if name not in RUNGS]
    if unknown:
        print(f"no such rung: {' '.join(unknown)}; there are: {' '.join(RUNGS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as reports:
        started = time.monotonic()
        outcomes = run_rungs(names, extra, Path(reports))
        seconds = time.monotonic() - started
    return sum_up(outcomes, seconds, strict=os.environ.get("CI", "") in ("1", "true"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
