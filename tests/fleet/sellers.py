"""Who sells: threads that create, edit, switch and delete accounts through any gateway, and hold every answer against
what may be true. Each account belongs to one seller, so its own history is a sequence. Called by run.py.

One that has a client host also has a customer there: a real WireGuard tunnel with real datagrams, whatever the state of
the account; while it is off, none may pass.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.fleet.history import History
from tests.fleet.model import Answer, Call, Create, Delete, Edit, Held, Lie, Read, State, Switch, told, words
from tests.fleet.traffic import Program, lead
from tests.lab.errors import LabError
from tests.lab.lab import Lab
from tests.lab.readings import mangle_counters
from tests.lab.rest import Answer as RestAnswer

TEXTS = {"": Answer.DONE, "Account not found": Answer.NO_SUCH, "The name is already in use": Answer.IN_USE}
NOBODY_KNOWS = "try again"  # ends the errors of a database that did not answer
REST_SECONDS = 40.0  # a call whose fate nobody knows may still come true: longer than a statement may take
SLOW_SECONDS = 0.5  # who was refused at once has nothing on its way
SURELY_ON = 5  # least Mbit/s of an account with traffic: nothing is dropped by shaping


@dataclass(slots=True)
class Off:
    """An account was surely off from `since` to `until` (time.monotonic; None: to the end)."""

    life: int
    since: float
    until: float | None = None


@dataclass(slots=True)
class Market:
    """What all sellers share."""

    lab: Lab
    history: History
    servers: list[str]
    node_of: dict[str, str] = field(default_factory=dict)  # of a server
    older: set[int] = field(default_factory=set)  # lives that a restored database brought back
    down: set[str] = field(default_factory=set)  # gateways that were killed: nobody would call them
    end: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    _lives: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def gateway(self, dice: random.Random) -> str:
        """One that runs, as far as it is known."""
        names = [gateway.name for gateway in self.lab.gateways]
        return dice.choice([name for name in names if name not in self.down] or names)

    def new_life(self) -> int:
        with self._lock:
            self._lives += 1
            return self._lives


class Seller(threading.Thread):
    """`client`: the host of its customer, who has its only account."""

    def __init__(
        self, market: Market, number: int, seed: int, names: list[str], client: str = "", traffic: Program | None = None
    ) -> None:
        super().__init__(name=f"seller-{number}", daemon=True)
        self.possible: dict[str, frozenset[State]] = {name: frozenset({None}) for name in names}
        self.off: list[Off] = []
        self.turn = threading.Lock()  # held during a call: who has it keeps the seller waiting
        self.client, self.traffic = client, traffic
        self._market, self._random = market, random.Random(seed * 1000 + number)
        self._resting: dict[str, float] = {}
        self._connected = 0  # the life that the customer's tunnel has ...
        self._led_to = ""  # ... the node that it leads to ...
        self._node = ""  # ... and the one that the last answer named

    def run(self) -> None:
        try:
            while not self._market.end.is_set():
                with self.turn:
                    answer = self.step()
                if answer is Answer.UNKNOWN:
                    time.sleep(1.0)
                time.sleep(self._random.uniform(0.2, 1.5) if self.client else self._random.uniform(0.05, 0.3))
        except Exception as broken:
            self._market.history.violated(0, "", f"the checker itself broke: {broken!r}")
            raise

    # -- one call -------------------------------------------------------------------------------------------------

    def step(self) -> Answer:
        ready = [name for name in self.possible if self._resting.get(name, 0.0) < time.monotonic()]
        if not ready:
            return Answer.UNKNOWN
        name = self._random.choice(ready)
        answer = self.call(name, self._chosen(name))
        if self.client:
            self._serve_customer(name)
        return answer

    def _chosen(self, name: str) -> Call:
        dice, rates = self._random.random(), (self._rate(), self._rate())
        states = self.possible[name]
        if None in states and (len(states) == 1 or dice < 0.5):
            return Create(self._market.new_life(), *rates)
        held = next(state for state in states if state)
        if dice < (0.04 if self.client else 0.25):
            return Delete()
        if dice < ((0.15 if held.enabled else 0.7) if self.client else 0.4):  # who has traffic is mostly on
            return Switch(not held.enabled)
        return Read() if dice < 0.8 else Edit(*rates)

    def _rate(self) -> int:
        return self._random.randint(SURELY_ON, 90)

    def call(self, name: str, call: Call) -> Answer:
        """Make the call, write it down, and narrow what may be true."""
        if isinstance(call, Switch) and call.enabled:
            self._is_off_until(name)
        gateway = self._gateway()
        began = time.monotonic()
        answer, text = self._ask(gateway, name, call)
        taken = time.monotonic() - began
        market = self._market
        market.counts[f"{type(call).__name__.lower()} {answer.value}"] += 1
        market.slowest = max(market.slowest, taken)
        market.history.add(name, f"{gateway} {call} -> {text} ({taken:.3f} s)")
        before = self.possible[name]
        try:
            self.possible[name] = told(before, call, answer)
        except Lie as lie:
            market.history.violated(1, name, f"{call} through {gateway} was {lie}")
            self.possible[name] = before | {None}
        if answer is Answer.UNKNOWN and not isinstance(call, Read):
            self._resting[name] = time.monotonic() + (REST_SECONDS if taken > SLOW_SECONDS else 1.0)
        if answer is Answer.DONE and text == "done" and isinstance(call, Delete | Switch):
            self._is_off(before, call)
        return answer

    def _gateway(self) -> str:
        return self._market.gateway(self._random)

    def _ask(self, gateway: str, name: str, call: Call) -> tuple[Answer, str]:
        try:
            answer = self._send(gateway, name, call)
        except LabError as lost:
            return Answer.UNKNOWN, f"lost: {lost}"
        known = TEXTS.get(answer.error)
        if known is None:
            if not answer.error.endswith(NOBODY_KNOWS):
                self._market.history.violated(0, name, f"{call} through {gateway} answered {answer.error!r}")
            return Answer.UNKNOWN, answer.error
        if known is not Answer.DONE:
            return known, known.value
        self._node = answer.node or self._node
        if isinstance(call, Read):
            self._compare(gateway, name, answer)
        return known, f"pending on {answer.pending}" if answer.pending else "done"

    def _send(self, gateway: str, name: str, call: Call) -> RestAnswer:
        rest = self._market.lab.rest_of(gateway)
        match call:
            case Create():
                server = self._random.choice(self._market.servers)
                values = {"b_download": call.download, "b_upload": call.upload, "wg_name": server, "name": name}
                return rest.call("POST", "account", values)
            case Edit():
                return rest.call("PUT", f"account/{name}", {"b_download": call.download, "b_upload": call.upload})
            case Switch():
                return rest.call("PUT", f"account/{name}", {"status": "enable" if call.enabled else "disable"})
            case Delete():
                return rest.call("DELETE", f"account/{name}")
            case Read():
                return rest.call("GET", f"account/{name}")

    def _compare(self, gateway: str, name: str, answer: RestAnswer) -> None:
        """A read narrows too: to what it shows."""
        shown = (answer.msg["status"] == "enable", int(answer.msg["b_download"]), int(answer.msg["b_upload"]))
        fitting = {s for s in self.possible[name] if s and (s.enabled, s.download, s.upload) == shown}
        if not fitting:
            text = f"{gateway} shows {shown}, but may be only: {words(self.possible[name])}"
            self._market.history.violated(1, name, text)
            return
        self.possible[name] = frozenset(fitting)

    # -- off means off --------------------------------------------------------------------------------------------

    def _is_off(self, before: frozenset[State], call: Delete | Switch) -> None:
        """The answer said that the node has done it. From now on no packet of these lives may pass."""
        if isinstance(call, Delete) or not call.enabled:
            known = {window.life for window in self.off if window.until is None}
            lives = {state.life for state in before if state} - known
            self.off += [Off(life, time.monotonic()) for life in lives]

    def _is_off_until(self, name: str) -> None:
        lives = {state.life for state in self.possible[name] if state}
        for window in self.off:
            if window.life in lives and window.until is None:
                window.until = time.monotonic()

    def forget_off(self) -> None:
        """An old database was restored: what was off in it is not what was off."""
        for window in self.off:
            window.until = window.until or time.monotonic()

    # -- the customer ---------------------------------------------------------------------------------------------

    def _serve_customer(self, name: str) -> None:
        """Bring up the tunnel of a new life; read its counters now and then, which must change nothing."""
        assert self.traffic
        held = self.certain(name)
        if held and held.life != self._connected:
            self.traffic.tell({"life": 0})
            try:
                self._market.lab.connect(self.client, name, wait=False, gateway=self._gateway())
            except LabError as failed:
                self._market.history.add(name, f"no tunnel yet: {failed}")
                return
            self._connected, self._led_to = held.life, self._node
            self.traffic.tell({"life": held.life})
            self._market.history.add(name, f"{self.client} sends as life {held.life}")
        elif held and self._led_to != self._node:  # the name that it knows its server by leads to another node now
            lead(self._market.lab, self.client, self._node)
            self._led_to = self._node
            self._market.history.add(name, f"{self.client} sends to {self._node}")
        elif held and held.enabled and self._random.random() < 0.3:
            try:
                mangle_counters(self._market.lab.rest_of(self._gateway()), name)
            except LabError:
                return  # its node is away, or has not heard of it yet

    def certain(self, name: str) -> Held | None:
        """The account if there is no doubt that it exists, and which life it is."""
        lives = {state.life if state else None for state in self.possible[name]}
        return next(iter(self.possible[name])) if len(lives) == 1 else None

    def reconnect(self) -> None:
        """At the next step: keys may be others."""
        self._connected = 0
