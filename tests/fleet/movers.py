"""Who moves servers: a thread that takes them from node to node, as an operator does, whatever dies meanwhile.

A command that succeeds says where a server is; of one that fails nobody knows whether the move was decided, and then it
goes on by itself. While one runs, both kernels are looked at: nobody may be held by two. Called by run.py.
"""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from tests.fleet.sellers import Market
from tests.fleet.verdicts import peers
from tests.lab.errors import LabError
from tests.lab.processes import wait_until

COMMAND_SECONDS = 15.0
ARRIVE_SECONDS = 30.0
PAUSE_SECONDS = (1.0, 6.0)
LOOK_SECONDS = 0.1


class Mover(threading.Thread):
    def __init__(self, market: Market, seed: int) -> None:
        super().__init__(name="mover", daemon=True)
        self.possible = {server: frozenset({node}) for server, node in market.node_of.items()}
        self.turn = threading.Lock()
        self._market, self._random = market, random.Random(seed * 1000 + 999)

    def run(self) -> None:
        try:
            while not self._market.end.wait(self._random.uniform(*PAUSE_SECONDS)):
                with self.turn:
                    self.step()
        except Exception as broken:
            self._market.history.violated(0, "", f"the checker itself broke: {broken!r}")
            raise

    def step(self) -> None:
        market, lab = self._market, self._market.lab
        server = self._random.choice(market.servers)
        before = self.possible[server]
        target = self._random.choice([node.name for node in lab.plan.nodes if {node.name} != before])
        gateway = self._random.choice([one.name for one in lab.gateways])
        self.possible[server] = before | {target}
        began = time.monotonic()
        with ThreadPoolExecutor(1) as beside:
            command = ("server", "move", server, "--node", target)
            moving = beside.submit(lab.gateway_cli, *command, gateway=gateway, seconds=COMMAND_SECONDS)
            if len(before) == 1:
                (source,) = before
                self._watch(server, source, target, moving)
        failed = moving.exception()
        if failed is None:
            self.possible[server] = frozenset({target})
        elif not isinstance(failed, LabError):
            raise failed
        text = "done" if failed is None else f"not done: {str(failed).rpartition('exit status 1: ')[2]}"
        market.counts[f"move {'done' if failed is None else 'not done'}"] += 1
        market.history.add(
            "", f"{gateway} server move {server} --node {target} -> {text} ({time.monotonic() - began:.1f} s)"
        )

    def _watch(self, server: str, source: str, target: str, moving: Future[str]) -> None:
        """Who is let in by the new node is let in by the old one no more. The new one is read first."""
        lab = self._market.lab
        mine = self._keys(server)
        while mine and not moving.done():
            time.sleep(LOOK_SECONDS)
            try:
                arrived = peers(lab, target).keys()
                both = mine & arrived & peers(lab, source).keys()
            except LabError:
                continue  # an interface went while it was read
            if both:
                text = f"{source} and {target} both let {sorted(both)} in while server {server} moves"
                self._market.history.violated(5, "", text)
                return

    def _keys(self, server: str) -> set[str]:
        """Of its accounts; nothing where no gateway can tell."""
        try:
            listed = self._market.lab.rest_of(self._market.gateway(self._random)).get("account")
        except LabError:
            return set()
        return {account["public_key"] for account in listed if account["wg_name"] == server}

    def find_all(self) -> None:
        """Where each server is when all moves have come to their end."""
        market, lab = self._market, self._market.lab
        try:
            wait_until(lambda: "on its way" not in lab.gateway_cli("server", "list"), "all moves", ARRIVE_SECONDS)
        except LabError as late:
            market.history.violated(3, "", str(late))
        for server, nodes in self.possible.items():
            node = market.node_of[server] = lab.rest.call("GET", f"wireguard/{server}").node
            if node not in nodes:
                market.history.violated(1, "", f"server {server} is on {node}, it may be only on {' or '.join(nodes)}")
