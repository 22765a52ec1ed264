"""What goes wrong, and when: drawn from the seed, at most two troubles at a time. Called by run.py.

Every trouble ends by itself after a drawn time; `end` ends all of them. What cannot be started again within the lab's
own deadline breaks the run, not just a promise.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.fleet.sellers import Market
from tests.lab.errors import LabError

MOST_AT_ONCE = 2
CLOCK_DAYS = (-2, 2)


@dataclass(frozen=True, slots=True)
class Trouble:
    """`hosts`: whom it concerns; no other trouble does at the same time."""

    text: str
    hosts: frozenset[str]
    begin: Callable[[], None]
    end: Callable[[], None]
    seconds: tuple[float, float]


class Chaos:
    def __init__(self, market: Market, seed: int, clock: bool) -> None:
        self._market, self._random = market, random.Random(seed)
        self._clock = clock
        self._running: list[tuple[float, Trouble]] = []
        self.counts: Counter[str] = Counter()

    def step(self) -> None:
        """End what is over; begin something now and then. Call it in a loop."""
        now = time.monotonic()
        for over in [item for item in self._running if item[0] <= now]:
            self._running.remove(over)
            self._finish(over[1])
        if len(self._running) < MOST_AT_ONCE and self._random.random() < 0.12:
            drawn = self._drawn()
            if not any(drawn.hosts & running.hosts for _, running in self._running):
                self._market.history.add("", f"-- {drawn.text}")
                self.counts[drawn.text.split()[0]] += 1
                drawn.begin()
                self._running.append((time.monotonic() + self._random.uniform(*drawn.seconds), drawn))

    def end(self) -> None:
        """Everything stands again. The database first: a gateway without it is not well."""
        for _, running in sorted(self._running, key=lambda item: "db" not in item[1].hosts):
            self._finish(running)
        self._running.clear()

    def _finish(self, trouble: Trouble) -> None:
        trouble.end()
        self._market.history.add("", f"-- over: {trouble.text}")

    def _drawn(self) -> Trouble:
        lab, pick = self._market.lab, self._random.choice
        node = pick(lab.plan.nodes).name
        gateway = pick(lab.gateways).name
        choices = [
            lambda: self._agent(f"kill agent {node}", node, lab.kill_agent, (0.0, 4.0)),
            lambda: self._agent(f"kill agent {node}", node, lab.kill_agent, (0.0, 4.0)),
            lambda: self._agent(f"stop agent {node}", node, lab.stop_agent, (0.0, 2.0)),
            lambda: self._gateway(f"kill gateway {gateway}", gateway, lab.kill_gateway),
            lambda: self._gateway(f"kill gateway {gateway}", gateway, lab.kill_gateway),
            lambda: self._gateway(f"stop gateway {gateway}", gateway, lab.stop_gateway),
            # Nothing that needs the database to begin or end may run beside it.
            lambda: self._database(),
            lambda: self._network(f"cut {node}", node, lambda: lab.cut(node), (2.0, 12.0)),
            lambda: self._network(f"cut {gateway}", gateway, lambda: lab.cut(gateway), (2.0, 12.0)),
            lambda: self._network(f"slow {node}", node, lambda: lab.slow(node, "256kbit"), (4.0, 12.0)),
        ]
        if self._clock:
            choices.append(lambda: self._clock_step(lab.plan.nodes[-1].name))
        return pick(choices)()

    def _agent(self, text: str, node: str, end: Callable[[str], None], seconds: tuple[float, float]) -> Trouble:
        lab = self._market.lab
        return Trouble(text, frozenset({node}), lambda: end(node), lambda: lab.start_agent(node), seconds)

    def _gateway(self, text: str, gateway: str, end: Callable[[str], None]) -> Trouble:
        market = self._market

        def begin() -> None:
            market.down.add(gateway)
            end(gateway)

        def start() -> None:
            market.lab.start_gateway(gateway)
            market.down.discard(gateway)

        return Trouble(text, frozenset({gateway, "db"}), begin, start, (0.5, 5.0))

    def _database(self) -> Trouble:
        lab = self._market.lab
        hosts = frozenset({"db", *(gateway.name for gateway in lab.gateways)})
        return Trouble("kill database", hosts, lab.kill_database, lab.start_database, (1.0, 5.0))

    def _network(self, text: str, host: str, begin: Callable[[], None], seconds: tuple[float, float]) -> Trouble:
        hosts = frozenset({host, "db"}) if host.startswith("g") else frozenset({host})
        return Trouble(text, hosts, begin, lambda: self._market.lab.heal(host), seconds)

    def _clock_step(self, node: str) -> Trouble:
        lab, days = self._market.lab, self._random.choice(CLOCK_DAYS)
        begin = lambda: lab.set_clock(node, days * 86_400)  # noqa: E731
        end = lambda: lab.set_clock(node, 0)  # noqa: E731
        return Trouble(f"clock of {node} {days:+d} days", frozenset({node}), begin, end, (3.0, 15.0))


def all_stands(market: Market) -> None:
    """Whatever a broken trouble left behind."""
    lab = market.lab
    with contextlib.suppress(LabError):
        lab.heal()
    lab.start_database()
    for node in lab.plan.nodes:
        lab.start_agent(node.name)
    for gateway in lab.gateways:
        lab.start_gateway(gateway.name)
    market.down.clear()
