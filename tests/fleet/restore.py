"""An old database comes back: a dump is restored while the nodes hold what came later. Called by run.py.

What an operator does: gateways stopped, database replaced, gateways started, and for every node that is contested
`wirelane-gateway node resync NODE --from-database`. From then on the dump is what was acknowledged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tests.fleet.model import State
from tests.fleet.movers import Mover
from tests.fleet.sellers import Market, Seller
from tests.lab import database
from tests.lab.hosts import run

PG_SECONDS = 60.0
NOTICE_SECONDS = 4.0  # the gateways look at every node in two


class Backup:
    """Taken at birth."""

    def __init__(self, market: Market, sellers: list[Seller], mover: Mover) -> None:
        self._market, self._sellers, self._mover = market, sellers, mover
        with paused(sellers, mover):
            market.history.add("", "-- backup of the database")
            self._file = database.folder(market.lab.state) / "backup"
            self._run("pg_dump", "-Fc", "-f", str(self._file), database.NAME)
            self._known: dict[str, frozenset[State]] = {}
            for seller in sellers:
                self._known |= seller.possible
            self._places = dict(mover.possible)

    def restore(self) -> None:
        market, lab = self._market, self._market.lab
        with paused(self._sellers, self._mover):
            market.history.add("", "-- an old database is restored")
            for gateway in lab.gateways:
                lab.stop_gateway(gateway.name)
            for seller in self._sellers:
                seller.forget_off()  # before a node gets the old state
            self._run("dropdb", "--force", database.NAME)
            self._run("createdb", database.NAME)
            self._run("pg_restore", "-d", database.NAME, str(self._file))
            for gateway in lab.gateways:
                lab.start_gateway(gateway.name)
            time.sleep(NOTICE_SECONDS)
            for node in lab.plan.nodes:
                lab.gateway_cli("node", "resync", node.name, "--from-database")
            for seller in self._sellers:
                self._take_back(seller)
            self._mover.possible = dict(self._places)
            market.history.add("", "-- the old database is in force")

    def _take_back(self, seller: Seller) -> None:
        """What may be true is what may have been true then. Lives that were ended since then are others' heirs now."""
        market = self._market
        for name in seller.possible:
            then, now = self._known[name], seller.possible[name]
            if {state and state.life for state in then} != {state and state.life for state in now}:
                market.older |= {state.life for state in then if state}
            seller.possible[name] = then
        seller.reconnect()

    def _run(self, program: str, *arguments: str) -> None:
        run(database.on_socket(self._market.lab.state, program, *arguments), seconds=PG_SECONDS)


@contextlib.contextmanager
def paused(sellers: list[Seller], mover: Mover) -> Iterator[None]:
    """No call is under way, and none begins."""
    with contextlib.ExitStack() as stack:
        for turn in (*(seller.turn for seller in sellers), mover.turn):
            stack.enter_context(turn)
        yield
