"""What marks and classes cost each packet that a box forwards.

Three nodes and a host with flat rules stand between a sender and a receiver: one node with all accounts, one with 100,
one with none. Small packets go through each of them by turns, all on one CPU, without WireGuard (which costs more than
all of this, and the same everywhere). A ratio is a median of pairs of one round.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

from bench.asked import Asked
from bench.box import NODE, Box, opened
from bench.measure import median
from bench.rivals import Sold, sold
from bench.table import Bar, Cell, Result, Table
from tests.lab.errors import LabError
from tests.lab.hosts import run as run_here
from tests.lab.services import ROOT
from tests.lab.topology import INTERNET, UPLINK

QUESTION = "Forwarded packets a second, against no marks and no HTB at all"
FEW_NODE, NONE_NODE = "n2", "n3"
FLAT, SENDER, RECEIVER = "c1", "c2", "c3"
FEW = 100
# As many servers as the box with all accounts has: each has forwarding rules, which these packets go through too.
FEW_NETWORKS = list(IPv4Network("10.68.0.0/16").subnets(prefixlen_diff=2))
NONE_NETWORKS = list(IPv4Network("10.69.0.0/16").subnets(prefixlen_diff=2))
SOURCES_ROUTE = "10.64.0.0/13"
NEAR = "wgin"  # where the packets come in: named as a link, for only what comes in by one is an account's
ROUNDS, PACKETS = 60, 5_120  # a round of one way takes about 30 ms
ACTIVE = 64  # accounts that send, evenly chosen
LOST_SHARE = 0.001


@dataclass(frozen=True, slots=True)
class Path:
    """One way through a host. `leaves`: out0, to the receiver, or the uplink, where the classes are."""

    name: str
    host: str
    number: int
    sources: tuple[str, ...]
    leaves: str = "out0"

    @property
    def target(self) -> str:
        return f"198.18.{self.number}.1"  # RFC 2544, benchmarking


def run(asked: Asked) -> Result:
    result = Result("forwarding", QUESTION, asked.accounts)
    for backend in asked.backends:
        with opened(asked, backend, nodes=3, clients=3) as box:
            _measure(box, result)
    result.notes.append(
        f"UDP of 22 bytes from {ACTIVE} accounts, sender and receiver on the same CPU, so a packet's whole time is "
        "counted; the receiver drops. Pairs are compared with the way in the third column of the same round. All ways "
        "have the agent's other rules (forward, NAT); where they lead to the uplink, NAT takes part. flat rules: two "
        "MARK rules for each account in one list, as panels have them."
    )
    return result


def _measure(box: Box, result: Result) -> None:
    box.fill(box.asked.accounts)
    box.fill(FEW, box.add_servers(FEW_NODE, FEW_NETWORKS), FEW_NODE, "b")
    box.add_servers(NONE_NODE, NONE_NETWORKS)
    accounts = sold(box.lab)
    here = [account for account in accounts if not account.address.startswith("10.68.")]
    chosen = {
        NODE: _spread([account.address for account in here]),
        FEW_NODE: _spread([account.address for account in accounts if account.address.startswith("10.68.")]),
    }
    _flat_rules(box, here)
    paths = [
        Path("no marks", NONE_NODE, 1, chosen[NODE]),
        Path(f"marks of {FEW}", FEW_NODE, 2, chosen[FEW_NODE]),
        Path(f"marks of {box.asked.accounts:,}", NODE, 3, chosen[NODE]),
        Path(f"flat rules of {box.asked.accounts:,}", FLAT, 4, chosen[NODE]),
        Path("no marks, no HTB, NAT", NONE_NODE, 5, chosen[NODE], UPLINK),
        Path(f"marks and classes of {box.asked.accounts:,}, NAT", NODE, 6, chosen[NODE], UPLINK),
    ]
    box.lab.stop_agent(NONE_NODE)  # or it would put its HTB back
    box.lab.exec(NONE_NODE, "tc", "qdisc", "delete", "dev", UPLINK, "root")
    _wire(box, paths)
    times = _flood(box, paths)
    _tell(box, result, paths, times)


def _spread(addresses: list[str]) -> tuple[str, ...]:
    count = min(ACTIVE, len(addresses))
    return tuple(addresses[number * len(addresses) // count] for number in range(count))


def _tell(box: Box, result: Result, paths: list[Path], times: dict[str, list[float]]) -> None:
    base, few, whole, flat, plain, shaped = (path.name for path in paths)
    rows: list[list[Cell]] = []
    ratios: dict[tuple[str, str], float] = {}
    for name, against in ((base, base), (few, base), (whole, base), (whole, few), (flat, base), (shaped, plain)):
        pairs = list(zip(times[name], times[against], strict=True))
        ratio = ratios[name, against] = median(there / here for here, there in pairs)
        more = median(here - there for here, there in pairs)
        rows.append([name, 1 / median(times[name]) / 1e3, against, ratio, more * 1e6])
        box.asked.say(f"{name}: {ratio:.2f} x {against}")
    columns = ("way", "kpps", "against", "ratio", "more, us a packet")
    result.tables.append(Table(f"Forwarding on one CPU, {box.backend}", columns, rows))
    name, full = box.backend, box.asked.is_full_size
    result.bars += [
        Bar(f"{name}: marks, against none", ratios[whole, base], 0.75, "x", at_most=False, judged=full),
        Bar(f"{name}: all marks, against {FEW}", ratios[whole, few], 0.95, "x", at_most=False, judged=full),
    ]


# -- wires --------------------------------------------------------------------------------------------------------


def _wire(box: Box, paths: list[Path]) -> None:
    """Veth pairs sender - host - receiver, routes, and neighbours that nobody has to ask for."""
    _ip(box, SENDER, [f"route add local {SOURCES_ROUTE} dev lo"])
    for host in dict.fromkeys(path.host for path in paths):
        for far, near, other in ((f"s-{host}", NEAR, SENDER), (f"r-{host}", "out0", RECEIVER)):
            inside, outside = box.lab.host(host).namespace, box.lab.host(other).namespace
            pair = f"ip link add {far} netns {outside} type veth peer name {near} netns {inside}"
            run_here(pair.split())  # only out here all hosts have names
            _ip(box, other, [f"link set {far} up"])
            _ip(box, host, [f"link set {near} up"])
        box.lab.exec(host, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    for path in paths:
        _ip(box, SENDER, _to(path.target, f"s-{path.host}", _hardware(box, path.host, NEAR)))
        if path.leaves == UPLINK:
            # `replace`: the ways of several nodes end in the same host.
            _ip(box, INTERNET, [f"route replace blackhole {path.target}/32"])
            _ip(box, path.host, [f"route add {path.target}/32 via {box.lab.host(path.host).router} dev {UPLINK}"])
        else:
            _ip(box, path.host, _to(path.target, "out0", _hardware(box, RECEIVER, f"r-{path.host}")))


def _to(target: str, device: str, hardware: str) -> list[str]:
    return [
        f"route add {target}/32 dev {device}",
        f"neigh replace {target} lladdr {hardware} dev {device} nud permanent",
    ]


def _ip(box: Box, host: str, commands: list[str]) -> None:
    box.lab.exec(host, "ip", "-batch", "-", stdin="".join(f"{command}\n" for command in commands))


def _hardware(box: Box, host: str, device: str) -> str:
    return str(json.loads(box.lab.exec(host, "ip", "-j", "link", "show", device).stdout)[0]["address"])


def _flat_rules(box: Box, accounts: list[Sold]) -> None:
    def rules() -> Iterator[str]:
        yield "*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n*mangle\n"
        for account in accounts:
            for side in ("-d", "-s"):
                yield f"-A FORWARD {side} {account.address} -j MARK --set-mark {account.mark}\n"
        yield "COMMIT\n"

    box.lab.exec(FLAT, "iptables-legacy-restore", "-w", stdin="".join(rules()))


# -- packets ------------------------------------------------------------------------------------------------------


def _flood(box: Box, paths: list[Path]) -> dict[str, list[float]]:
    """Seconds of a packet, by way and round. Raises LabError if packets did not come through."""
    asked = {
        "ways": [{"target": path.target, "sources": path.sources} for path in paths],
        "rounds": ROUNDS,
        "packets": PACKETS,
    }
    before = {path.name: _arrived(box, path) for path in paths}
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "bench.flood"]
    seen = json.loads(box.lab.exec(SENDER, *command, stdin=json.dumps(asked), seconds=300.0).stdout)
    sent = (ROUNDS + 1) * PACKETS
    for path in paths:
        came = _arrived(box, path) - before[path.name]
        if came < sent * (1 - LOST_SHARE):
            raise LabError(f"{path.name}: {came} of {sent} packets came through")
    return {
        path.name: [taken / PACKETS / 1e9 for taken in taken_all] for path, taken_all in zip(paths, seen, strict=True)
    }


def _arrived(box: Box, path: Path) -> int:
    host, device = (INTERNET, f"to-{path.host}") if path.leaves == UPLINK else (RECEIVER, f"r-{path.host}")
    shown = box.lab.exec(host, "cat", "/proc/net/dev").stdout
    found = re.search(rf"^\s*{device}:\s*\d+\s+(\d+)", shown, re.MULTILINE)
    if found is None:
        raise LabError(f"{host} has no {device}")
    return int(found[1])
