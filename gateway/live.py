"""What a live read shows of a server. Values only; those of an account are in model.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LiveRule:
    """For people. None = the node's backend does not count there."""

    source: str
    destination: str
    target: str
    packets: int | None = None
    octets: int | None = None


@dataclass(frozen=True, slots=True)
class LiveServer:
    """As the kernel of its node has it now. `roots`: device, and what `tc -s qdisc show` prints of our root there."""

    nat: tuple[LiveRule, ...]
    forward: tuple[LiveRule, ...]
    roots: tuple[tuple[str, str], ...]
