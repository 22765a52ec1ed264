"""What a tester reads off a lab: rates, counters, usage. Called by demo.py, the namespace tests and the benchmarks.

Rates are goodput (what the receiving program got), Mbit/s of 10^6 bit.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Literal

from tests.lab.connect import INTERFACE
from tests.lab.errors import LabError
from tests.lab.lab import Lab
from tests.lab.rest import Rest
from tests.lab.topology import INTERNET_ADDRESS

Direction = Literal["download", "upload"]
# A full TCP segment of 1420 bytes through the tunnel carries 1368 bytes (96.3 %); HTB counts 14 more on the uplink.
GOODPUT = 0.95
TOLERANCE = 0.05
REST_SECONDS, REST_STEP = 10.0, 0.3
WEB = f"http://{INTERNET_ADDRESS}"


def measured_rate(lab: Lab, client: str, direction: Direction, seconds: int = 7, port: int = 5201) -> float:
    """Goodput of one TCP connection, by iperf3; a first second (slow start) is left out."""
    command = ["iperf3", "--json", "--client", str(INTERNET_ADDRESS), "--port", str(port)]
    command += ["--time", str(seconds), "--omit", "1", "--connect-timeout", "5000"]
    if direction == "download":
        command.append("--reverse")
    report = json.loads(lab.exec(client, *command, check=False, seconds=seconds + 30.0).stdout or "{}")
    if "error" in report or "end" not in report:
        raise LabError(f"iperf3 on {client}: {report.get('error', 'no report')}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6


def is_shaped(rate: float, sold: int) -> bool:
    """Within 5 % of 95 % of what was sold."""
    return abs(rate - GOODPUT * sold) <= TOLERANCE * GOODPUT * sold


def shaped_rate(
    lab: Lab, client: str, direction: Direction, sold: int, *, seconds: int = 7, attempts: int = 3
) -> float:
    """The goodput; measured again, at most `attempts` times in all, while it is too low.

    Other work on the machine starves userspace WireGuard and makes a rate smaller; nothing but wrong shaping makes it
    larger, so a rate that is too high is final.
    """
    rate = measured_rate(lab, client, direction, seconds)
    while attempts > 1 and rate < GOODPUT * sold and not is_shaped(rate, sold):
        attempts -= 1
        rate = measured_rate(lab, client, direction, seconds)
    return rate


@dataclass(frozen=True, slots=True)
class MangleCounters:
    """The account's two MARK rules, inner IP bytes."""

    download_packets: int
    download_bytes: int
    upload_packets: int
    upload_bytes: int

    def covers(self, earlier: MangleCounters) -> bool:
        """Nothing fell since then."""
        return (
            self.download_packets >= earlier.download_packets
            and self.download_bytes >= earlier.download_bytes
            and self.upload_packets >= earlier.upload_packets
            and self.upload_bytes >= earlier.upload_bytes
        )


def mangle_counters(rest: Rest, account: str) -> MangleCounters:
    text = rest.get(f"account/{account}/firewall_mangle_rules")
    found = re.findall(r" Pkt:(\d+) Bytes:(\d+)$", text, re.MULTILINE)
    if len(found) != 2:
        raise LabError(f"firewall_mangle_rules of {account}: not two rules: {text!r}")
    return MangleCounters(*(int(number) for rule in found for number in rule))


def counters_at_rest(rest: Rest, account: str) -> MangleCounters:
    """Once nothing moves: the last acknowledgements come after the last byte. Raises LabError."""
    counted = mangle_counters(rest, account)
    for _ in range(int(REST_SECONDS / REST_STEP)):
        time.sleep(REST_STEP)
        before, counted = counted, mangle_counters(rest, account)
        if before == counted:
            return counted
    raise LabError(f"traffic of {account} went on for {REST_SECONDS:g} s")


def usage(rest: Rest, account: str) -> tuple[int, int]:
    """Bytes down and up in the statistics of this month and the last (a test may run at midnight)."""
    today = datetime.now(UTC).date()
    last = today.replace(day=1) - timedelta(days=1)
    days = [
        day
        for month in (last, today)
        for day in rest.get(f"account/{account}/traffic_statistics/{month.year}/{month.month}")
    ]
    return sum(day["traffic_download"] for day in days), sum(day["traffic_upload"] for day in days)


def received(lab: Lab, client: str) -> int:
    """Bytes that came to a connected client through its tunnel."""
    line = lab.exec(client, "wg", "show", INTERFACE, "transfer").stdout
    return int(line.split("\t")[1])


def fetch(lab: Lab, client: str, path: str, seconds: float = 5.0) -> str | None:
    """What the lab's web server answers; None if it does not."""
    command = ["curl", "--silent", "--fail", "--max-time", f"{seconds:g}", f"{WEB}{path}"]
    done = lab.exec(client, *command, check=False, seconds=seconds + 10.0)
    return done.stdout if done.returncode == 0 else None


class Download:
    """A download that runs in the background: `with Download(lab, "c1", "40M") as running: ...`."""

    def __init__(self, lab: Lab, client: str, size: str) -> None:
        command = [
            "curl",
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{size_download}",
            f"{WEB}/bytes/{size}",
        ]
        self._curl = subprocess.Popen(
            lab.command(client, *command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Download:
        return self

    def finished(self, seconds: float) -> int:
        """Wait for its end; bytes it got. Raises LabError if it failed or is not done in time."""
        try:
            received, _ = self._curl.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as late:
            raise LabError(f"the download is not done within {seconds:g} s") from late
        if self._curl.returncode:
            raise LabError(f"the download broke off: curl exit status {self._curl.returncode}")
        return int(received)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._curl.kill()
        self._curl.communicate()
