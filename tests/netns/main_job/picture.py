"""The node's kernel as outsiders see it (wg, iptables-legacy, tc), and as the REST API says it should be.

The tools' own output is read on purpose: the program under test must not be its own witness.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.lab.lab import Lab
from tests.lab.topology import UPLINK

NODE = "n1"
RULE = re.compile(
    r"^\[(?P<packets>\d+):(?P<bytes>\d+)\] -A WL_\S+ "
    r"(?P<side>-s|-d) (?P<address>[0-9.]+)/32 .*-j MARK --set-xmark (?P<mark>0x[0-9a-f]+)/0xffffffff$",
    re.MULTILINE,
)
CLASS = re.compile(r"^class htb 1:(?P<minor>[0-9a-f]+) .*?rate (?P<rate>\S+) ceil (?P<ceil>\S+) ", re.MULTILINE)
SENT = re.compile(r"^class htb 1:(?P<minor>[0-9a-f]+) .*\n Sent (?P<bytes>\d+) bytes", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Picture:
    """What matters for accounts, comparable. Rates as tc prints them ("20Mbit")."""

    peers: frozenset[tuple[str, str, str]]  # interface, public key, allowed ips
    marks: frozenset[tuple[str, str, str]]  # -s or -d, address, mark in hex
    classes: frozenset[tuple[str, str, str]]  # device, minor in hex, rate
    counters: dict[tuple[str, str], int] = field(compare=False, default_factory=dict)  # only ever grow

    def fell(self, earlier: Picture) -> dict[tuple[str, str], tuple[int, int]]:
        """Counters that are smaller than, or missing since, an earlier picture."""
        return {
            key: (before, self.counters.get(key, -1))
            for key, before in earlier.counters.items()
            if self.counters.get(key, -1) < before
        }


def found(lab: Lab) -> Picture:
    """The kernel now."""
    counters: dict[tuple[str, str], int] = {}
    peers = set()
    for line in lab.exec(NODE, "wg", "show", "all", "dump").stdout.splitlines():
        part = line.split("\t")
        if len(part) == 9:  # interface, key, preshared, endpoint, allowed ips, handshake, rx, tx, keepalive
            peers.add((part[0], part[1], part[4]))
            counters["peer rx", part[1]] = int(part[6])
            counters["peer tx", part[1]] = int(part[7])
    marks = set()
    for rule in RULE.finditer(lab.exec(NODE, "iptables-legacy-save", "-t", "mangle", "-c").stdout):
        marks.add((rule["side"], rule["address"], rule["mark"]))
        counters[f"mark {rule['side']}", rule["address"]] = int(rule["bytes"])
    classes = set()
    for device in (*links(lab), UPLINK):
        text = lab.exec(NODE, "tc", "-s", "class", "show", "dev", device).stdout
        classes |= {(device, item["minor"], item["rate"]) for item in CLASS.finditer(text)}
        counters |= {(f"class {device}", item["minor"]): int(item["bytes"]) for item in SENT.finditer(text)}
    return Picture(frozenset(peers), frozenset(marks), frozenset(classes), counters)


def links(lab: Lab) -> list[str]:
    """WireGuard interfaces of the node."""
    return lab.exec(NODE, "wg", "show", "interfaces").stdout.split()


def wanted(lab: Lab) -> Picture:
    """What the kernel should hold, from what the API says."""
    interfaces = {name: server["interface_name"] for name, server in lab.rest.get("wireguard").items()}
    peers, marks, classes = set(), set(), set()
    for account in lab.rest.get("account"):
        device, address, mark = interfaces[account["wg_name"]], account["allowed_IPs"], int(account["mangle"])
        if account["status"] != "enable":
            continue  # a disabled account has nothing in the kernel
        peers.add((device, account["public_key"], f"{address}/32"))
        marks |= {("-d", address, hex(mark)), ("-s", address, hex(mark))}
        minor = account["mangle"] if mark <= 9999 else f"{mark:x}"
        for link, rate in ((device, account["b_download"]), (UPLINK, account["b_upload"])):
            if rate != "0":
                classes.add((link, minor, _tc_rate(int(rate))))
    return Picture(frozenset(peers), frozenset(marks), frozenset(classes))


def _tc_rate(megabits: int) -> str:
    """As tc(8) prints it: in Gbit only where nothing is lost."""
    return f"{megabits // 1000}Gbit" if megabits % 1000 == 0 else f"{megabits}Mbit"
