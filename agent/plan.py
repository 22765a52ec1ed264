"""What a resync would change, in words: a line for each kernel object, and the counts. PURE. Called by offline.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agent.desired import Desired
from agent.diff import Diffs
from agent.parts import MARKS, PARTS, AccountPart, Part


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


def plan(desired: Desired, differ: Diffs, changeovers: Mapping[str, str]) -> Plan:
    """`changeovers`: from which backend to which the marks go when the agent is started again."""
    steps = [
        Step("move", MARKS.noun, f"from {old} to {new}, when the agent is started again")
        for old, new in changeovers.items()
    ]
    for part in PARTS:
        for verb, values in differ[part].by_verb():
            steps += [
                Step(verb, part.noun, part.detail(value), _whose(desired, part, key)) for key, value in values.items()
            ]
    return Plan(tuple(steps))


def _whose(desired: Desired, part: Part[Any, Any], key: Any) -> str:
    account = desired.accounts.get(part.owner(desired, key)) if isinstance(part, AccountPart) else None
    server = desired.server_of(part.device(key))
    return account.name if account else server.name if server else ""
