"""Filter: the operator's rules for what accounts send and get; one for all servers. It stands before anything is let
through, and goes when nothing is any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from agent.model import FilterRule, Server
from agent.objects import FILTER_KEY, Filter
from agent.parts.part import Place, ServerPart


def _each(rules: Iterable[FilterRule]) -> Iterator[FilterRule]:
    for one in rules:
        if one.protocol == "any" and (one.source_port or one.destination_port):
            yield from (replace(one, protocol=protocol) for protocol in ("tcp", "udp"))
        else:
            yield one


def _into(held: dict[str, Filter], server: Server, place: Place) -> None:
    if server.filter:
        before = held[FILTER_KEY].devices if FILTER_KEY in held else frozenset()
        held[FILTER_KEY] = Filter(tuple(_each(server.filter)), before | frozenset(server.devices))


FILTER = ServerPart[str, Filter](
    name="filter",
    noun="filter",
    device=lambda key: "",
    detail=lambda one: f"{len(one.rules)} rules" if one.rules else "rules that are damaged",
    into=_into,
)
