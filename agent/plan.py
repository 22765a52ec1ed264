"""What a resync would change, in words: a line for each kernel object, and the counts. PURE. Called by offline.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agent.desired import Desired
from agent.model import Class, Diff, Forwarding, Link, Mark, Peer, mark_of

WORDS = {  # what one object of each part is called
    "links": "link",
    "qdiscs": "qdisc",
    "forwarding": "forwarding",
    "classes": "class",
    "marks": "mark",
    "peers": "peer",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel object. `whose`: name of an account or a server, "" = nobody's that is known here."""

    verb: str  # "add", "change", "remove", "move"
    object: str  # "class"
    detail: str  # "wg1 1:109 20 Mbit/s"
    whose: str = ""

    def line(self) -> str:
        return f"{self.verb:<7} {self.object:<10} {self.detail}" + (f"  ({self.whose})" if self.whose else "")


@dataclass(frozen=True, slots=True)
class Plan:
    steps: tuple[Step, ...] = ()

    def lines(self) -> Iterator[str]:
        """For people."""
        if not self.steps:
            yield "nothing to do: the kernel shows what was asked for"
            return
        for step in self.steps:
            yield step.line()
        yield f"{len(self.steps)} objects differ: " + ", ".join(
            f"{count} {name} to {verb}" for verb, objects in self.counts().items() for name, count in objects.items()
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """By verb and kind of object."""
        counts: dict[str, dict[str, int]] = {}
        for step in self.steps:
            objects = counts.setdefault(step.verb, {})
            objects[step.object] = objects.get(step.object, 0) + 1
        return counts

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {"differs": bool(self.steps), "counts": self.counts(), "steps": [asdict(step) for step in self.steps]}


def plan(desired: Desired, diffs: Mapping[str, Diff[Any, Any]], moves: Mapping[str, str]) -> Plan:
    """`moves`: from which backend to which the marks go when the agent is started again."""
    steps = [
        Step("move", "mark", f"from {old} to {new}, when the agent is started again") for old, new in moves.items()
    ]
    for part, diff in diffs.items():
        for verb, values in (("add", diff.add), ("change", diff.change), ("remove", diff.remove)):
            steps += [Step(verb, WORDS[part], _detail(value), _whose(desired, value)) for value in values.values()]
    return Plan(tuple(steps))


def _detail(value: Any) -> str:
    """What tells the object from others of its kind; never a key of anybody."""
    match value:
        case Link():
            return f"{value.interface} {value.address} UDP {value.listen_port} MTU {value.mtu}"
        case Class():
            rate = f"{value.rate} Mbit/s" if value.rate > 0 else "not as it should be"
            return f"{value.device} 1:{value.minor:x} {rate}"
        case Forwarding(interface=""):
            return "rules that are damaged or nobody's"
        case Forwarding():
            return f"{value.interface} {value.network} to {value.uplink}"
        case Mark(mark=0):
            return "rules that are damaged or nobody's"
        case Mark():
            return f"{value.address} 0x{value.mark:x}"
        case Peer():
            return f"{value.interface} {value.address or 'without an address of ours'}"
        case _:
            return str(value.device)


def _whose(desired: Desired, value: Any) -> str:
    account = desired.accounts.get(_account(desired, value))
    if account is not None:
        return account.name
    interface = getattr(value, "interface", None) or getattr(value, "device", None)
    return next((server.name for server in desired.servers.values() if server.interface == interface), "")


def _account(desired: Desired, value: Any) -> int:
    if owner := getattr(value, "owner", 0):
        return int(owner)
    match value:
        case Class():
            return desired.by_mark.get(mark_of(value.minor), 0)
        case Mark():
            return desired.by_address.get(value.address, 0)
        case Peer():
            servers = (server.name for server in desired.servers.values() if server.interface == value.interface)
            return desired.by_key.get((next(servers, ""), value.public_key), 0)
    return 0
