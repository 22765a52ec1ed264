"""The demo's chapters about a fleet: two nodes, two gateways, one PostgreSQL, and nobody misses what dies.

Called by demo.py; stands on the lab and the public REST API only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.lab.errors import ApiError, LabError
from tests.lab.lab import Lab
from tests.lab.readings import fetch, usage
from tests.lab.rest import Answer, Rest
from tests.lab.story import Story

CLIENT, ACCOUNT = "c1", "fleet"
NODES = ("n1", "n2")
CREATES, CALLERS = 60, 4
SETTLED_SECONDS = 15.0


class FleetDemo:
    def __init__(self, lab: Lab, story: Story) -> None:
        self._lab = lab
        self._story = story
        self._rests = [lab.rest_of(gateway.name) for gateway in lab.gateways]
        self._servers: dict[str, str] = {}  # by node

    def run(self) -> None:
        chapters: tuple[Callable[[], None], ...] = (
            self._place,
            self._connect,
            self._cut,
            self._gateway_killed,
            self._moved,
        )
        for chapter in chapters:
            chapter()

    def _place(self) -> None:
        self._story.chapter("One API, two nodes: a server on each")
        for node in NODES:
            answer = self._rests[0].call("POST", "wireguard", {"node": node})
            self._servers[node] = answer.msg["name"]
            self._story.step(answer.node == node, f"POST /wireguard node={node}: {answer.msg['name']} is on {node}")

    def _connect(self) -> None:
        self._story.chapter("An account is made by one gateway, its configuration comes from the other")
        self._rests[0].post("account", wg_name=self._servers["n2"], name=ACCOUNT)
        self._lab.connect(CLIENT, ACCOUNT, gateway=self._lab.gateways[1].name)
        seen = (fetch(self._lab, CLIENT, "/ip") or "nothing").strip()
        public = str(self._lab.host("n2").address.ip)
        self._story.step(seen == public, f"the web server sees the client as {seen} (n2 is {public})")

    def _cut(self) -> None:
        self._story.chapter("Node n2 is cut off from both gateways: its customers stay, its changes wait")
        self._lab.cut("n2")
        self._story.step(fetch(self._lab, CLIENT, "/ip") is not None, "its customer goes on")
        answers = [self._created("n2") for _ in range(3)]
        waited = ", ".join(f"{seconds * 1000:.0f}" for _, seconds in answers)
        is_pending = all(answer.pending == "n2" and not answer.error for answer, _ in answers)
        self._story.step(is_pending, f"three creates there: accepted and pending after {waited} ms")
        answer, seconds = self._created("n1")
        at_once = not answer.error and not answer.pending
        self._story.step(at_once, f"one on n1 meanwhile: there after {seconds * 1000:.0f} ms")
        self._lab.heal("n2")
        began = time.monotonic()
        names = [answer.msg["name"] for answer, _ in answers]
        healed = self._eventually(lambda: all(_is_there(self._rests[1], name) for name in names))
        self._story.step(healed, f"healed: all three are in its kernel after {time.monotonic() - began:.1f} s")

    def _created(self, node: str) -> tuple[Answer, float]:
        began = time.monotonic()
        answer = self._rests[0].call("POST", "account", {"wg_name": self._servers[node]})
        return answer, time.monotonic() - began

    def _gateway_killed(self) -> None:
        first = self._lab.gateways[0].name
        self._story.chapter(f"Gateway {first} is killed (SIGKILL) while {CALLERS} callers create {CREATES} accounts")
        with ThreadPoolExecutor(CALLERS) as callers:
            running = [callers.submit(self._create_somewhere, number) for number in range(CREATES)]
            while sum(one.done() for one in running) < CREATES // 4:
                time.sleep(0.01)
            self._lab.kill_gateway(first)
            acknowledged = [name for one in running if (name := one.result())]
        self._story.tell(f"{len(acknowledged)} were acknowledged; the others heard nothing, and would ask again")
        rest = self._rests[1]
        arrived = self._eventually(lambda: all(_is_there(rest, name) for name in acknowledged))
        self._story.step(arrived, "every acknowledged account is in the kernel of its node")
        addresses = [account["allowed_IPs"] for account in rest.get("account")]
        self._story.step(len(addresses) == len(set(addresses)), f"{len(addresses)} accounts, no address held twice")
        self._lab.start_gateway(first)

    def _moved(self) -> None:
        server = self._servers["n2"]
        self._story.chapter(f"{server} moves from n2 to n1, with its accounts, keys and statistics")
        before = usage(self._rests[1], ACCOUNT)
        began = time.monotonic()
        self._lab.gateway_cli("server", "move", server, "--node", "n1")
        self._story.step(True, f"moved after {time.monotonic() - began:.1f} s")
        self._lab.disconnect(CLIENT)
        self._lab.connect(CLIENT, ACCOUNT, gateway=self._lab.gateways[1].name)
        seen = (fetch(self._lab, CLIENT, "/ip") or "nothing").strip()
        public = str(self._lab.host("n1").address.ip)
        self._story.step(seen == public, f"the web server sees the client as {seen} (n1 is {public})")
        after = usage(self._rests[1], ACCOUNT)
        grown = all(late > early for early, late in zip(before, after, strict=True))
        self._story.step(grown, f"its statistics went on: {sum(before):,} bytes before, {sum(after):,} now")
        self._lab.disconnect(CLIENT)

    def _create_somewhere(self, number: int) -> str:
        """The name of the account; "" = nobody answered."""
        node = NODES[number % len(NODES)]
        try:
            answer = self._rests[number // 2 % len(self._rests)].call(
                "POST", "account", {"wg_name": self._servers[node]}
            )
        except LabError:
            return ""
        return "" if answer.error else str(answer.msg["name"])

    def _eventually(self, holds: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + SETTLED_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


def _is_there(rest: Rest, account: str) -> bool:
    """In the kernel of its node, by a live read."""
    try:
        return bool(rest.get(f"account/{account}/firewall_mangle_rules"))
    except ApiError:
        return False
