"""The parts of the kernel, one suite for the fake that the unit tests stand on, and for Linux itself in a namespace,
with either backend.

What the core relies on is here: what was written reads back equal, applying is idempotent, one bad key spoils only
itself, counters start where they are told to and are kept by a change.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from agent.errors import KernelError
from agent.kernel.trials.backend import BACKENDS, Backend
from agent.model import EVERYWHERE, IKEV2_DEVICE, FilterRule, Ikev2, Secret, clamped
from agent.objects import (
    ANY_STAMP,
    FILTER_KEY,
    NO_STAMP,
    Class,
    Counters,
    Diff,
    Filter,
    Forwarding,
    Gate,
    Link,
    LoginRow,
    Mark,
    Peer,
    Port,
    Qdisc,
    Responder,
    Scope,
)
from agent.parts import (
    CLASSES,
    FILTER,
    FORWARDING,
    GATE,
    LINKS,
    LOGINS,
    MARKS,
    PARTS,
    PEERS,
    PORTS,
    QDISCS,
    RESPONDER,
    Part,
)
from agent.shaping import shape
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import key
from tests.netns.conftest import enter, make_namespace  # noqa: F401 - make_namespace is a fixture
from tests.netns.ikev2_box import credentials

UPLINK = "eth0"
OTHER = IPv4Address("192.0.2.77")
_numbers = itertools.count()

IPV6, RESOLVERS = IPv6Address("2001:db8:77::2"), (IPv4Address("9.9.9.9"), IPv6Address("2620:fe::fe"))
NO_MAIL = FilterRule(False, EVERYWHERE, EVERYWHERE, "tcp", 0, 25)


@dataclass
class Held:
    """A kernel with one link and its surroundings in place. `run` calls on the thread that lives in its namespace."""

    kernel: Any
    run: Callable[..., Any]
    link: str
    shown: Ikev2

    @property
    def scope(self) -> Scope:
        return Scope(frozenset({self.link}), UPLINK)

    def read(self, part: Part[Any, Any]) -> dict[Any, Any]:
        found: dict[Any, Any] = self.run(lambda: self.kernel.door(part).read(self.scope))
        return found

    def apply(self, part: Part[Any, Any], **diff: Any) -> dict[Any, KernelError]:
        return dict(self.run(lambda: self.kernel.door(part).apply(Diff(**diff))))

    def values(self) -> dict[Part[Any, Any], dict[Any, Any]]:
        """Something of every part."""
        address = IPv4Address("10.99.0.2")
        link = Link(self.link, clamped(Secret(key(7))), 51999, IPv4Interface("10.99.0.1/24"), 1420)
        peer = Peer(self.link, key(8), address)
        to = address, 8080, None, UPLINK
        down, up = Class(self.link, 0x100, 20), Class(UPLINK, 0x100, 10)
        return {
            LINKS: {self.link: link},
            QDISCS: {self.link: Qdisc(self.link), UPLINK: Qdisc(UPLINK)},
            CLASSES: {(self.link, 0x100): down, (UPLINK, 0x100): up},
            FILTER: {FILTER_KEY: Filter((NO_MAIL,), frozenset({self.link}))},
            FORWARDING: {self.link: Forwarding(self.link, IPv4Interface("10.99.0.1/24"), UPLINK, 51999, False, None)},
            MARKS: {address: Mark(address, 100)},
            PEERS: {(self.link, key(8)): peer},
            RESPONDER: {IKEV2_DEVICE: Responder(IKEV2_DEVICE)},
            LOGINS: {"user_1": LoginRow("user_1", Secret("secret"), address, RESOLVERS, address_ipv6=IPV6)},
            PORTS: {one.key: one for one in (Port("tcp", 80, *to), Port("udp", 53, *to[:2], OTHER, UPLINK))},
            GATE: {IKEV2_DEVICE: Gate(IKEV2_DEVICE, self.shown.digest, self.shown)},
        }

    def build(self) -> None:
        for part in PARTS:
            assert self.apply(part, add=self.values()[part]) == {}

    def take_down(self) -> None:
        for part in reversed(PARTS):
            self.apply(part, remove=self.read(part))


@contextmanager
def real(make: Callable[[], str], backend: Backend, folder: Path, shown: Ikev2) -> Iterator[Held]:
    from agent.kernel.linux import LinuxKernel
    from agent.kernel.wireguard.links import choose_mode

    namespace = make()
    for command in (
        f"link add {UPLINK} type veth peer name other",
        f"addr add 192.0.2.2/24 dev {UPLINK}",
        f"link set {UPLINK} up",
        "link set other up",
        "route add default via 192.0.2.1",
    ):
        subprocess.run(["ip", "-n", namespace, *command.split()], check=True, timeout=30)
    with enter(namespace) as run:
        kernel = run(lambda: LinuxKernel(choose_mode("auto"), "auto", backend, runtime=folder))
        held = Held(kernel, run, f"wlk{os.getpid()}x{next(_numbers)}", shown)
        try:
            yield held
        finally:
            held.take_down()


@pytest.fixture(scope="module")
def shown() -> Ikev2:
    return credentials()


@pytest.fixture(params=["fake", *BACKENDS])
def held(request: pytest.FixtureRequest, tmp_path: Path, shown: Ikev2) -> Iterator[Held]:
    if request.param == "fake":
        yield Held(FakeKernel(UPLINK), lambda call: call(), "wg9", shown)
        return
    with real(request.getfixturevalue("make_namespace"), request.param, tmp_path / "ikev2", shown) as box:
        yield box


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_what_was_written_reads_back_equal_and_twice_is_once(held: Held, part: Part[Any, Any]) -> None:
    held.build()
    assert held.read(part) == held.values()[part]
    assert held.apply(part, add=held.values()[part]) == {}
    assert held.read(part) == held.values()[part]


def test_classes_and_marks_may_be_made_at_once(held: Held) -> None:
    for part in (LINKS, QDISCS):
        held.apply(part, add=held.values()[part])
    marks = {IPv4Address(f"10.99.0.{n}"): Mark(IPv4Address(f"10.99.0.{n}"), n) for n in range(100, 250)}
    classes = {(device, n): Class(device, n, 5) for n in range(100, 250) for device in (held.link, UPLINK)}

    def both() -> list[dict[Any, KernelError]]:
        shaping = shape(held.kernel, Diff(add=classes))
        marked = held.kernel.marks.apply(Diff(add=marks))
        return [dict(marked), dict(shaping.done.result(30))]  # type: ignore[arg-type]

    assert held.run(both) == [{}, {}]
    assert (held.read(CLASSES), held.read(MARKS)) == (classes, marks)


def test_everything_removed_is_nothing_left(held: Held) -> None:
    held.build()
    held.take_down()
    assert {part: held.read(part) for part in PARTS} == {part: {} for part in PARTS}
    held.take_down()  # what is absent is removed already


def test_what_is_absent_is_removed_already(held: Held) -> None:
    for part in reversed(PARTS):
        assert held.apply(part, remove=held.values()[part]) == {}


def test_values_change_in_place(held: Held) -> None:
    held.build()
    values = held.values()
    changed: dict[Part[Any, Any], dict[Any, Any]] = {
        LINKS: {held.link: replace(values[LINKS][held.link], listen_port=51998, mtu=1380)},
        CLASSES: {(UPLINK, 0x100): Class(UPLINK, 0x100, 300)},
        FILTER: {FILTER_KEY: replace(values[FILTER][FILTER_KEY], devices=frozenset({held.link, IKEV2_DEVICE}))},
        FORWARDING: {held.link: replace(values[FORWARDING][held.link], internal_traffic=True, ikev2=True)},
        RESPONDER: {IKEV2_DEVICE: replace(values[RESPONDER][IKEV2_DEVICE], ipv6=True)},
        LOGINS: {"user_1": replace(values[LOGINS]["user_1"], password=Secret("another"), dns=(), address_ipv6=None)},
        GATE: {IKEV2_DEVICE: replace(values[GATE][IKEV2_DEVICE], ipv6=True)},
        PORTS: {("udp", 53): replace(values[PORTS]["udp", 53], to_port=5353)},
        PEERS: {(held.link, key(8)): Peer(held.link, key(8), IPv4Address("10.99.0.77"))},
    }
    for part, change in changed.items():
        assert held.apply(part, change=change) == {}
        assert held.read(part) == {**values[part], **change}


def test_counters_are_told_of_all_addresses_or_of_some(held: Held) -> None:
    numbers = {IPv4Address(f"10.99.{n}.{n}"): Counters(n, 100 * n, n, 10 * n) for n in range(1, 5)}
    held.apply(MARKS, add={a: Mark(a, 100 + n, counters=c) for n, (a, c) in enumerate(numbers.items())})
    some = [*list(numbers)[1:3], IPv4Address("10.99.9.9")]
    assert held.run(held.kernel.marks.counters) == numbers
    assert held.run(lambda: held.kernel.marks.counters(some)) == {a: numbers[a] for a in some[:2]}
    assert held.run(lambda: held.kernel.marks.counters([])) == {}


def test_rules_start_from_their_counters_keep_them_and_start_anew_when_told(held: Held) -> None:
    address, before = IPv4Address("10.99.0.2"), Counters(3, 3000, 2, 200)
    held.apply(MARKS, add={address: Mark(address, 100, counters=before)})
    assert held.run(held.kernel.marks.counters) == {address: before}
    held.apply(MARKS, change={address: Mark(address, 101)})
    assert held.read(MARKS) == {address: Mark(address, 101)}
    assert held.run(held.kernel.marks.counters) == {address: before}
    held.apply(MARKS, change={address: Mark(address, 101, restart=True)})
    assert held.run(held.kernel.marks.counters) == {address: Counters()}
    assert held.read(MARKS)[address].counters == Counters()


def test_the_table_of_marks_says_when_rules_last_went_or_were_begun_anew(held: Held) -> None:
    first, second = (Mark(IPv4Address(f"10.99.0.{n}"), 100 + n) for n in (2, 3))

    def said() -> set[int]:
        made = {mark.counters.made for mark in held.read(MARKS).values()}
        assert made == {one.made for one in held.run(held.kernel.marks.counters).values()}
        return made

    def at(revision: int, after: int, *marks: Mark, **values: Any) -> dict[Any, Mark]:
        return {one.address: replace(one, at=revision, after=after, **values) for one in marks}

    held.apply(MARKS, add=at(3, NO_STAMP, first))
    assert said() == {3}
    held.apply(MARKS, add=at(4, 3, second))
    assert said() == {3}, "nobody had that address"
    held.apply(MARKS, change=at(5, 3, second, restart=True))
    assert said() == {5}
    held.apply(MARKS, remove=at(6, 3, second))
    assert said() == {5}, "it does not say what it should: somebody put it back"
    held.apply(MARKS, add=at(7, 5, second))
    held.apply(MARKS, remove=at(8, ANY_STAMP, second))
    assert said() == {8}
    held.apply(MARKS, remove=at(9, 8, first))
    held.apply(MARKS, add=at(2, NO_STAMP, first))
    assert said() == {2}, "all of it had gone"


def test_one_bad_key_spoils_only_itself(held: Held) -> None:
    held.build()
    good, bad = Class(held.link, 0x200, 5), Class("nowhere", 0x200, 5)
    assert set(held.apply(CLASSES, add={("nowhere", 0x200): bad, (held.link, 0x200): good})) == {("nowhere", 0x200)}
    assert held.read(CLASSES)[held.link, 0x200] == good
    fine, lost = Peer(held.link, key(9), IPv4Address("10.99.0.9")), Peer("nowhere", key(9), IPv4Address("10.99.0.9"))
    assert set(held.apply(PEERS, add={("nowhere", key(9)): lost, (held.link, key(9)): fine})) == {("nowhere", key(9))}
    assert held.read(PEERS)[held.link, key(9)] == fine


def test_a_link_takes_with_it_what_hangs_on_it(held: Held) -> None:
    held.build()
    assert held.apply(LINKS, remove=held.values()[LINKS]) == {}
    assert held.read(PEERS) == {} and set(held.read(QDISCS)) == {UPLINK}
    assert set(held.read(CLASSES)) == {(UPLINK, 0x100)}


def test_the_uplink_is_the_way_out(held: Held) -> None:
    assert held.run(held.kernel.uplink) == UPLINK


def test_live_reads_tell_what_is_there(held: Held) -> None:
    held.build()
    states = held.run(lambda: held.kernel.peer_states(held.link))
    assert {k: s.address for k, s in states.items()} == {key(8): IPv4Address("10.99.0.2")}
    assert "rate 20Mbit" in held.run(lambda: held.kernel.class_text(held.link, 0x100))
    assert held.run(lambda: held.kernel.class_text(held.link, 0x101)) is None
