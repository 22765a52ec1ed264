"""What one would use instead: a shell that starts a program for every step, and the best that ready tools can do.

Both work in hosts of their own in the same lab, on the same accounts.

`Batch` is one script over files that were prepared before the clock starts, read off the node that the agent has built:
the very same objects in the same shape, loaded by `tc -batch`, `iptables-legacy-restore` (`nft -f`) and `wg addconf`.
That is close to the kernel's own cost.

`Shell` is what panels do: `wg set`, two flat MARK rules, two classes, two filters, one process each. It is measured as
far as 1,000 accounts and carried further by its own measured growth. Kernels without the `fw` filter get `u32` ones.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent.model import minor
from bench.box import NODE, Box, interfaces, wipe
from bench.measure import Growth
from tests.lab.lab import Lab
from tests.lab.topology import UPLINK

SHELL_COUNTS = (100, 300, 1_000)
SCRIPT_SECONDS = 900.0
FILTERS_OF_A_PRIORITY = 2_000  # u32 has numbers for 4,095
STAMP = 'stamp() { echo "$1 $EPOCHREALTIME"; }\n'


@dataclass(frozen=True, slots=True)
class Sold:
    """An account as a panel knows it."""

    interface: str
    public_key: str
    address: str
    mark: int
    download: int
    upload: int

    @property
    def classid(self) -> str:
        return f"1:{minor(self.mark):x}"


def sold(lab: Lab) -> list[Sold]:
    """All accounts, by address."""
    links = {server["name"]: server["interface_name"] for server in _listed(lab, "wireguard")}
    accounts = [
        Sold(
            links[account["wg_name"]],
            account["public_key"],
            account["allowed_IPs"].removesuffix("/32"),
            int(account["mangle"]),
            int(account["b_download"]),
            int(account["b_upload"]),
        )
        for account in _listed(lab, "account")
    ]
    return sorted(accounts, key=lambda account: tuple(map(int, account.address.split("."))))


def _listed(lab: Lab, path: str) -> list[dict[str, Any]]:
    answer = lab.rest.get(path)
    if isinstance(answer, dict):
        return list(answer.values())
    return [item if isinstance(item, dict) else lab.rest.get(f"{path}/{item}") for item in answer]


# -- batch --------------------------------------------------------------------------------------------------------


class Batch:
    """`ground`: the host to work in; it is wiped before each run."""

    def __init__(self, lab: Lab, ground: str) -> None:
        self._lab = lab
        self._ground = ground
        self._folder = lab.state / "batch"
        self._folder.mkdir(exist_ok=True)
        self._script = self._folder / "run.sh"

    def prepare(self) -> None:
        """Read the node, write the files."""
        links = interfaces(self._lab, NODE)
        self._write("links", self._link_commands(links))
        for link in links:
            self._write(f"{link}.conf", [self._read("wg", "showconf", link)])
        commands = [command for device in (*links, UPLINK) for command in tc_commands(*self._shown(device))]
        self._write("tc", commands)
        self._write("rules", (self._read("iptables-legacy-save", "-t", table) for table in ("mangle", "nat", "filter")))
        ruleset = self._lab.exec(NODE, "nft", "list", "table", "ip", "wirelane", check=False)
        self._write("nft", [ruleset.stdout] if ruleset.returncode == 0 else [])
        self._script.write_text(self._steps(links, bool(ruleset.returncode == 0 and ruleset.stdout)))

    def run(self) -> dict[str, float]:
        """Seconds of each step, and of all of it as "total"."""
        wipe(self._lab, self._ground)
        began = time.monotonic()
        printed = self._lab.exec(self._ground, "bash", str(self._script), seconds=SCRIPT_SECONDS).stdout
        total = time.monotonic() - began
        stamps = [line.split() for line in printed.splitlines()]
        steps = {name: float(at) - float(before) for (_, before), (name, at) in pairwise(stamps)}
        return steps | {"total": total}

    def _steps(self, links: Sequence[str], has_nft: bool) -> str:
        at = self._folder
        steps = ["set -euo pipefail", STAMP, "stamp start"]
        steps += [f"wireguard-go {link} >/dev/null 2>&1" for link in links]
        steps += [f"ip -batch {at}/links", "echo 1 > /proc/sys/net/ipv4/ip_forward", "stamp links"]
        steps += [f"tc -batch {at}/tc", "stamp classes"]
        steps += [f"iptables-legacy-restore --noflush -w < {at}/rules"]
        steps += [f"nft -f {at}/nft"] if has_nft else []
        steps += ["stamp marks", *(f"wg addconf {link} {at}/{link}.conf" for link in links), "stamp peers"]
        return "\n".join(steps) + "\n"

    def _link_commands(self, links: Sequence[str]) -> Iterable[str]:
        for shown in json.loads(self._read("ip", "-j", "address", "show")):
            name = shown["ifname"]
            if name in links:
                own = shown["addr_info"][0]
                yield f"address add {own['local']}/{own['prefixlen']} dev {name}"
                yield f"link set {name} mtu {shown['mtu']} up"

    def _shown(self, device: str) -> tuple[str, list[dict[str, Any]], str, str]:
        qdiscs = json.loads(self._read("tc", "-d", "-j", "qdisc", "show", "dev", device))
        filters = self._read("tc", "filter", "show", "dev", device)
        return device, qdiscs, self._read("tc", "-d", "class", "show", "dev", device), filters

    def _read(self, *command: str) -> str:
        return self._lab.exec(NODE, *command).stdout

    def _write(self, name: str, lines: Iterable[str]) -> None:
        path = self._folder / name
        path.touch(0o600)
        path.write_text("".join(line if line.endswith("\n") else f"{line}\n" for line in lines))


CLASS = re.compile(
    r"^class htb (\S+) (root|parent \S+) .*?quantum (\d+) rate (\S+) ceil (\S+) .*?burst (\S+?)/\d+ .*?cburst (\S+?)/",
    re.MULTILINE,
)
FILTER = re.compile(r"^filter parent (\S+) protocol all pref (\d+) bpf .*?bytecode '(.*?)'", re.MULTILINE)


def tc_commands(device: str, qdiscs: list[dict[str, Any]], classes: str, filters: str) -> list[str]:
    """Lines for `tc -batch` that make what was shown: a qdisc, its filter and classes, then what hangs below."""
    below: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for qdisc in qdiscs:
        below["root" if qdisc.get("root") else f"parent {qdisc['parent']}"].append(qdisc)
    of_qdisc: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for found in CLASS.findall(classes):
        of_qdisc[found[0].partition(":")[0] + ":"].append(found)
    programs = {parent: (priority, code) for parent, priority, code in FILTER.findall(filters)}
    commands: list[str] = []
    waiting = ["root"]
    while waiting:
        place = waiting.pop()
        for qdisc in below[place]:
            handle = qdisc["handle"]
            commands.append(
                f"qdisc add dev {device} {place} handle {handle} {qdisc['kind']} {_options(qdisc)}".rstrip()
            )
            if handle in programs:
                priority, code = programs[handle]
                program = f"protocol all prio {priority} bpf bytecode '{code}'"
                commands.append(f"filter add dev {device} parent {handle} {program}")
            for classid, parent, quantum, rate, ceil, burst, cburst in of_qdisc[handle]:
                where = f"parent {handle}" if parent == "root" else parent
                shape = f"htb rate {rate} ceil {ceil} burst {burst} cburst {cburst} quantum {quantum}"
                commands.append(f"class add dev {device} {where} classid {classid} {shape}")
                waiting.append(f"parent {classid}")
    return commands


def _options(qdisc: dict[str, Any]) -> str:
    given = qdisc["options"]
    if qdisc["kind"] == "htb":
        return f"r2q {given['r2q']} default {given['default'].removeprefix('0x')}"
    if qdisc["kind"] == "fq_codel":
        memory = f"memory_limit {given['memory_limit']}"
        return f"limit {given['limit']} flows {given['flows']} target {given['target']}us {memory}"
    return f"limit {given['limit']}"


# -- shell --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shelled:
    """`seconds` by how many accounts had been made by then."""

    seconds: dict[int, float]

    @property
    def growth(self) -> Growth:
        return Growth.fitted(list(self.seconds.items()))

    def at(self, count: int) -> tuple[float, bool]:
        """Seconds for so many, and whether they were carried there instead of measured."""
        if count in self.seconds:
            return self.seconds[count], False
        return self.growth.at(count), True


class Shell:
    def __init__(self, lab: Lab, ground: str) -> None:
        self._lab = lab
        self._ground = ground
        self._folder = lab.state / "shell"
        self._folder.mkdir(exist_ok=True)
        self._filter = "u32"

    def prepare(self, accounts: Sequence[Sold]) -> None:
        """An empty host with the interfaces and roots; then `accounts` in bulk, flat as a panel would have them."""
        wipe(self._lab, self._ground)
        links = interfaces(self._lab, NODE)
        steps = ["set -euo pipefail", *(f"wireguard-go {link} >/dev/null 2>&1" for link in links)]
        for link in links:
            steps += [f"ip link set {link} up", f"wg set {link} private-key <(wg genkey)"]
        steps += [f"tc qdisc add dev {device} root handle 1: htb default 0" for device in (*links, UPLINK)]
        self._run("ground", steps)
        trial = f"tc filter add dev {UPLINK} parent 1: protocol ip prio 1 handle 1 fw flowid 1:1"
        if self._lab.exec(self._ground, *trial.split(), check=False).returncode == 0:
            self._filter = "fw"
        self._bulk(accounts)

    def _bulk(self, accounts: Sequence[Sold]) -> None:
        if not accounts:
            return
        per_link: dict[str, list[str]] = defaultdict(list)
        rules, classes = ["*mangle"], []
        for number, account in enumerate(accounts):
            peer, towards, back, *tc = self._steps(account, number)
            del peer
            per_link[account.interface].append(
                f"[Peer]\nPublicKey = {account.public_key}\nAllowedIPs = {account.address}/32\n"
            )
            rules += [rule.partition("-t mangle ")[2] for rule in (towards, back)]
            classes += [step.removeprefix("tc ") for step in tc]
        steps = ["set -euo pipefail"]
        for name, lines in (("rules", [*rules, "COMMIT"]), ("tc", classes), *((k, v) for k, v in per_link.items())):
            self._file(name, lines)
        steps += [f"iptables-legacy-restore --noflush -w < {self._folder}/rules", f"tc -batch {self._folder}/tc"]
        steps += [f"wg addconf {link} {self._folder}/{link}" for link in per_link]
        self._run("bulk", steps)

    def measure(self, accounts: Sequence[Sold], counts: Sequence[int], already: int = 0) -> Shelled:
        """Add the accounts one by one; the time at each of the counts. `already`: how many `prepare` has made."""
        steps = [STAMP, "stamp 0"]
        for number, account in enumerate(accounts):
            steps += self._steps(account, already + number)
            if number + 1 in counts:
                steps.append(f"stamp {number + 1}")
        printed = self._run("shell", ["set -e", *steps])
        stamps = {int(count): float(at) for count, at in (line.split() for line in printed.splitlines())}
        began = stamps.pop(0)
        return Shelled({count: at - began for count, at in stamps.items()})

    def _steps(self, account: Sold, number: int) -> list[str]:
        link, address, mark, classid = account.interface, account.address, account.mark, account.classid
        steps = [f"wg set {link} peer {account.public_key} allowed-ips {address}/32"]
        for side in ("-d", "-s"):
            steps.append(f"iptables-legacy -w -t mangle -A FORWARD {side} {address} -j MARK --set-mark {mark}")
        for device, rate in ((link, account.download), (UPLINK, account.upload)):
            steps.append(f"tc class add dev {device} parent 1: classid {classid} htb rate {rate}mbit")
        priority = 1 + number // FILTERS_OF_A_PRIORITY
        for device, side in ((link, "dst"), (UPLINK, "src")):
            match = f"handle {mark} fw" if self._filter == "fw" else f"u32 match ip {side} {address}/32"
            steps.append(f"tc filter add dev {device} parent 1: protocol ip prio {priority} {match} flowid {classid}")
        return steps

    def _file(self, name: str, lines: Iterable[str]) -> Path:
        path = self._folder / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def _run(self, name: str, steps: Iterable[str]) -> str:
        path = self._file(f"{name}.sh", steps)
        return self._lab.exec(self._ground, "bash", str(path), seconds=SCRIPT_SECONDS).stdout


def shell_for(box: Box, ground: str) -> Shelled:
    """The shell in an empty host, as far as it is measured: at most 1,000 accounts."""
    accounts = sold(box.lab)[: SHELL_COUNTS[-1]]
    counts = [count for count in SHELL_COUNTS if count < len(accounts)] + [len(accounts)]
    shell = Shell(box.lab, ground)
    shell.prepare([])
    box.asked.say(f"shell: {len(accounts):,} accounts, one process for each step")
    return shell.measure(accounts, counts)
