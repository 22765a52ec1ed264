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
from tests.lab.topology import INTERNET_ADDRESS, INTERNET_IPV6

Direction = Literal["download", "upload"]
# A full TCP segment of 1420 bytes through the tunnel carries 1368 bytes (96.3 %); HTB counts 14 more on the uplink.
GOODPUT = 0.95
TOLERANCE = 0.05
REST_SECONDS, REST_STEP = 10.0, 0.3
IPERF_TRIES = 3
WEB, WEB_IPV6 = f"http://{INTERNET_ADDRESS}", f"http://[{INTERNET_IPV6}]"


def measured_rate(lab: Lab, client: str, direction: Direction, seconds: int = 7, port: int = 5201) -> float:
    """Goodput of one TCP connection, by iperf3; a first second (slow start) is left out."""
    command = ["iperf3", "--json", "--client", str(INTERNET_ADDRESS), "--port", str(port)]
    command += ["--time", str(seconds), "--omit", "1", "--connect-timeout", "5000"]
    if direction == "download":
        command.append("--reverse")
    for _ in range(IPERF_TRIES):  # between two tests a server of iperf3 listens to nobody for a moment
        report = json.loads(lab.exec(client, *command, check=False, seconds=seconds + 30.0).stdout or "{}")
        if "error" not in report and "end" in report:
            return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6
        time.sleep(1.0)
    raise LabError(f"iperf3 on {client}: {report.get('error', 'no report')}")


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
    """The account's two MARK rules, inner IP bytes; of both its addresses where it has two."""

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
    if len(found) not in (2, 4):
        raise LabError(f"firewall_mangle_rules of {account}: not two rules for each address: {text!r}")
    numbers = [[int(number) for rule in found[i : i + 2] for number in rule] for i in range(0, len(found), 2)]
    return MangleCounters(*map(sum, zip(*numbers, strict=True)))


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


def came(lab: Lab, client: str) -> int:
    """Inner bytes of those, headers included."""
    (link,) = json.loads(lab.exec(client, "ip", "-j", "-s", "link", "show", INTERFACE).stdout)
    return int(link["stats64"]["rx"]["bytes"])


def came_by_ipv6(lab: Lab, client: str) -> int:
    """Bytes of IPv6 that came to a client: all of them inside, if its endpoint is an IPv4 address."""
    table = dict(line.split() for line in lab.exec(client, "cat", "/proc/net/snmp6").stdout.splitlines())
    return int(table["Ip6InOctets"])


def fetch(lab: Lab, client: str, path: str, seconds: float = 5.0, web: str = WEB) -> str | None:
    """What the lab's web server answers; None if it does not."""
    command = ["curl", "--silent", "--fail", "--max-time", f"{seconds:g}", f"{web}{path}"]
    done = lab.exec(client, *command, check=False, seconds=seconds + 10.0)
    return done.stdout if done.returncode == 0 else None


class Download:
    """A download that runs in the background: `with Download(lab, "c1", "40M") as running: ...`."""

    def __init__(self, lab: Lab, client: str, size: str, web: str = WEB) -> None:
        command = [
            "curl",
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{size_download}",
            f"{web}/bytes/{size}",
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
