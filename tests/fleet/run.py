"""One run of the history checker: a lab, sellers, customers, trouble for so many minutes, then the six promises.

Called by __main__.py and the tests of this folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fleet import traffic, verdicts
from tests.fleet.chaos import Chaos, all_stands
from tests.fleet.history import History
from tests.fleet.late import late_snapshot
from tests.fleet.movers import Mover
from tests.fleet.restore import Backup
from tests.fleet.sellers import Market, Seller
from tests.fleet.traffic import Program
from tests.lab.errors import ApiError
from tests.lab.lab import Lab
from tests.lab.services import why_no_clocks

SETTINGS_AGENT = {"sample_seconds": 1, "resync_seconds": 10}
SETTINGS_GATEWAY = {"collect_seconds": 2}
DRAIN_SECONDS = 5.0  # sample, collection, and what is still on its way
NAMES_PER_SELLER = 12
QUIET_SECONDS = 3.0
AGAIN_SECONDS = 15.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    seconds: float
    nodes: int = 3
    clients: int = 3
    sellers: int = 3
    restore: bool = True
    log: Path | None = None


@dataclass(slots=True)
class Outcome:
    history: History
    lines: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return not self.history.violations


@contextlib.contextmanager
def fleet(nodes: int, clients: int, keep: Path) -> Iterator[Lab]:
    """A lab for this process; its logs are kept in a folder if something breaks."""
    name = f"hc{os.getpid()}"
    lab = Lab.up(
        name,
        nodes,
        clients,
        gateways=2,
        postgresql=True,
        agent=SETTINGS_AGENT,
        gateway=SETTINGS_GATEWAY,
        clocks=not why_no_clocks(),
    )
    logs: Path | None = keep
    try:
        yield lab
        logs = None
    finally:
        Lab.down(name, keep_logs=logs)


def cleared(lab: Lab) -> None:
    """Without servers and accounts. Asks again where it is told to: something may have died a moment ago."""
    names = [f"account/{account['name']}" for account in _again(lab.rest.get, "account")]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: _again(lab.rest.delete, name), names))
    for server in _again(lab.rest.get, "wireguard"):
        _again(lab.rest.delete, f"wireguard/{server}")


def _again(call: Callable[[str], Any], path: str) -> Any:
    until = time.monotonic() + AGAIN_SECONDS
    while True:
        try:
            return call(path)
        except ApiError as error:
            if not error.text.endswith("try again") or time.monotonic() > until:
                raise
        time.sleep(0.2)


def market_of(lab: Lab, history: History) -> Market:
    """A server on every node, and nothing else."""
    cleared(lab)
    market = Market(lab, history, [])
    for node in lab.plan.nodes:
        name = lab.rest.post("wireguard", node=node.name)["name"]
        market.servers.append(name)
        market.node_of[name] = node.name
    return market


def run(lab: Lab, plan: Plan, say: Say) -> Outcome:
    history = History(plan.log)
    market = market_of(lab, history)
    outcome = Outcome(history)
    with contextlib.ExitStack() as stack:
        echo = stack.enter_context(traffic.echo(lab))
        customers = [stack.enter_context(traffic.customer(lab, host.name)) for host in lab.plan.clients]
        sellers = [
            Seller(market, number, plan.seed, [f"s{number}-{index}" for index in range(NAMES_PER_SELLER)])
            for number in range(plan.sellers)
        ] + [
            Seller(market, 100 + number, plan.seed, [f"c{number + 1}"], host.name, customers[number])
            for number, host in enumerate(lab.plan.clients)
        ]
        mover = Mover(market, plan.seed)
        for one in (*sellers, mover):
            one.start()
        try:
            _live(market, plan, sellers, mover, say, outcome)
        finally:
            market.end.set()
            for one in (*sellers, mover):
                one.join(60.0)
        _judge(market, sellers, mover, echo, customers, outcome)
    history.close()
    return outcome


def _live(market: Market, plan: Plan, sellers: list[Seller], mover: Mover, say: Say, outcome: Outcome) -> None:
    """Trouble until the time is over; on the way a snapshot that comes late, and in the middle an old database."""
    chaos = Chaos(market, plan.seed, clock=not why_no_clocks())
    time.sleep(QUIET_SECONDS)
    before = verdicts.sizes(market.lab)
    backup = Backup(market, sellers, mover) if plan.restore else None
    staged: list[tuple[float, Callable[[], object]]] = [
        (plan.seconds / 4, lambda: outcome.lines.append(late_snapshot(market, sellers, mover)))
    ]
    if backup:
        staged.append((plan.seconds / 2, backup.restore))
    began = time.monotonic()
    while (passed := time.monotonic() - began) < plan.seconds:
        chaos.step()
        if staged and passed > staged[0][0]:
            chaos.end()
            staged.pop(0)[1]()
        if market.history.violations:
            say("a promise is broken; no further trouble")
            break
        time.sleep(0.25)
    chaos.end()
    all_stands(market)
    outcome.lines.append("troubles: " + ", ".join(f"{count} {what}" for what, count in sorted(chaos.counts.items())))
    verdicts.settled(market)
    verdicts.are_bounded(market.history, before, verdicts.sizes(market.lab))


def _judge(
    market: Market, sellers: list[Seller], mover: Mover, echo: Program, customers: list[Program], outcome: Outcome
) -> None:
    history, rest = market.history, market.lab.rest
    verdicts.settled(market)
    mover.find_all()
    for customer in customers:
        customer.tell({"life": 0})
    verdicts.judge(market, sellers)
    time.sleep(DRAIN_SECONDS)
    echoed = echo.report()
    for seller in sellers:
        if not seller.client or not seller.traffic:
            continue
        (name,) = seller.possible
        verdicts.off_was_off(history, name, seller.off, echoed)
        if held := seller.certain(name):
            moved = seller.traffic.report().get(held.life, {})
            exact = held.life not in market.older
            told = verdicts.statistics_are_true(history, rest, name, held, moved, echoed.get(held.life, {}), exact)
            outcome.lines.append(f"{name}: {told}")
    calls = ", ".join(f"{count} {what}" for what, count in sorted(market.counts.items()))
    outcome.lines += [f"calls: {calls}", f"slowest answer: {market.slowest:.1f} s"]
