import base64
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.desired import Desired, Snapshot
from agent.diff import diff, diff_of, diffs, sliced
from agent.model import PortForward, Reach, Secret, clamped, is_mark, mark_of, minor
from agent.objects import (
    Class,
    Forwarding,
    ForwardingIPv6,
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
from agent.parts import CLASSES, FORWARDING, GATE, LINKS, LOGINS, MARKS, PEERS, PORTS, QDISCS, RESPONDER
from agent.parts.forwarding import free_ports
from agent.wanted import scope_of, wanted, wanted_accounts
from tests.fakes.state import EPOCH, IKEV2, account, key, login, server

OUTSIDE = IPv4Address("192.0.2.7")


def desired(*accounts: object) -> Desired:
    return Desired.of(EPOCH, Snapshot(1, (server(),), accounts))  # type: ignore[arg-type]


def test_one_account_is_two_classes_a_mark_and_a_peer() -> None:
    want = wanted(desired(account(2)), "eth0")
    assert want[CLASSES] == {("wg1", 0x100): Class("wg1", 0x100, 20), ("eth0", 0x100): Class("eth0", 0x100, 10)}
    address = IPv4Address("10.0.1.2")
    assert want[MARKS] == {address: Mark(address, 100)} and want[MARKS][address].owner == 2
    assert want[PEERS] == {("wg1", key(2)): Peer("wg1", key(2), address)}
    assert want[QDISCS] == {"wg1": Qdisc("wg1"), "eth0": Qdisc("eth0")}
    assert want[FORWARDING] == {"wg1": Forwarding("wg1", IPv4Interface("10.0.1.1/24"), "eth0", 51821, False, None)}
    assert want[LINKS]["wg1"].mtu == 1420


def test_an_account_with_everything() -> None:
    web, second = PortForward("tcp", 80, 8080), IPv6Address("fd00:1::2")
    one = account(2, login=login(2), ports=(web,), address_ipv6=second)
    network = IPv6Interface("fd00:1::1/64")
    state = Desired.of(EPOCH, Snapshot(1, (server(ikev2=IKEV2, address_ipv6=network, external_ip=OUTSIDE),), (one,)))
    want = wanted(state, "eth0")
    assert want[PEERS] == {("wg1", key(2)): Peer("wg1", key(2), one.address, address_ipv6=second)}
    assert set(want[MARKS]) == {one.address, second}
    row = LoginRow("user_2", Secret("secret"), one.address, IKEV2.dns, 2, second)
    assert want[LOGINS] == {"user_2": row}
    assert want[LOGINS]["user_2"].owner == 2
    assert want[PORTS] == {("tcp", 80): Port("tcp", 80, one.address, 8080, OUTSIDE, "eth0")}
    assert want[PORTS]["tcp", 80].owner == 2
    assert {key for key, _ in want[CLASSES]} == {"wg1", "ipsec0", "eth0"}
    assert wanted(state, "")[PORTS] == {}, "a port leads nowhere from no uplink"


def test_a_server_with_everything() -> None:
    network, reach = IPv6Interface("fd00:1::1/64"), Reach(False, (IPv4Network("192.0.2.0/24"),))
    values: dict[str, Any] = {"address_ipv6": network, "nat_ipv6": True, "external_ip": OUTSIDE, "reach": reach}
    one = server(internal_traffic=True, mtu=1300, listen_port=25_000, ikev2=IKEV2, **values)
    want = wanted(Desired.of(EPOCH, Snapshot(1, (one,))), "eth0", mtu=1380)
    ports = free_ports((25_000,))
    way = (one.address, "eth0", 25_000, True, OUTSIDE, reach, ports, ForwardingIPv6(network, True), True)
    assert want[FORWARDING] == {"wg1": Forwarding("wg1", *way)}
    assert want[LINKS] == {"wg1": Link("wg1", clamped(one.private_key), 25_000, one.address, 1300, network)}
    assert want[RESPONDER] == {"ipsec0": Responder("ipsec0", ipv6=True)}
    assert want[GATE] == {"ipsec0": Gate("ipsec0", IKEV2.digest, IKEV2, ipv6=True)}
    assert want[GATE]["ipsec0"].credentials == IKEV2


def test_a_private_key_is_wanted_as_wireguard_keeps_it() -> None:
    raw = base64.b64decode(wanted(desired(), "eth0")[LINKS]["wg1"].private_key.reveal())
    assert (raw[0] & 7, raw[31] >> 6) == (0, 1)


def test_what_is_there_is_looked_for_on_what_is_wanted_and_links_by_their_keys_too() -> None:
    want = wanted(Desired.of(EPOCH, Snapshot(1, (server(1, ikev2=IKEV2), server(2)))), "eth0")
    keys = {name: want[LINKS][name].private_key for name in ("wg1", "wg2")}
    assert scope_of(want, "eth0") == Scope(frozenset({"wg1", "wg2", "ipsec0"}), "eth0", keys)


def test_unlimited_has_no_class_and_each_direction_counts_for_itself() -> None:
    assert wanted(desired(account(2, download=0, upload=0)), "eth0")[CLASSES] == {}
    assert set(wanted(desired(account(2, download=0)), "eth0")[CLASSES]) == {("eth0", 0x100)}


def test_a_disabled_account_has_nothing() -> None:
    off = wanted(desired(account(2, enabled=False)), "eth0")
    assert (off[PEERS], off[MARKS], off[CLASSES]) == ({}, {}, {})


def test_without_servers_nothing_is_wanted_on_the_uplink() -> None:
    assert wanted(Desired(EPOCH), "eth0")[QDISCS] == {}


def test_accounts_alone_are_the_same_objects() -> None:
    state = desired(account(2), account(3))
    assert wanted_accounts(state, [2, 77], "eth0")[PEERS] == {
        ("wg1", key(2)): Peer("wg1", key(2), IPv4Address("10.0.1.2"))
    }


def test_a_mark_is_told_from_its_minor() -> None:
    assert all(mark_of(minor(mark)) == mark for mark in range(65536) if is_mark(mark))
    assert not any(is_mark(mark_of(number)) for number in (0, 0x99, 0xAB, 0x1A0, 0x9FFF, 0xFFFF))


def test_no_two_marks_share_a_minor() -> None:
    marks = [mark for mark in range(65536) if is_mark(mark)]
    minors = {minor(mark) for mark in marks}
    assert len(marks) == len(minors) == 34_475 and minor(109) == 0x109 and max(minors) == 0xFFFE


maps = st.dictionaries(st.integers(0, 8), st.integers(0, 2))


@given(maps, maps)
def test_applying_a_diff_gives_wanted_and_the_next_is_empty(want: dict[int, int], found: dict[int, int]) -> None:
    step = diff(want, found)
    after = {k: v for k, v in found.items() if k not in step.remove} | dict(step.add) | dict(step.change)
    assert after == want and not diff(want, after)


@given(maps, maps, st.sets(st.integers(0, 8)))
def test_a_diff_of_some_keys_is_that_part_of_the_whole(
    want: dict[int, int], found: dict[int, int], keys: set[int]
) -> None:
    whole, part = diff(want, found), diff_of(keys, want, found)
    for name in ("add", "change", "remove"):
        assert getattr(part, name) == {k: v for k, v in getattr(whole, name).items() if k in keys}


def test_changes_come_at_once_and_who_is_new_slice_by_slice() -> None:
    before = desired(account(2), account(3))
    after = desired(account(2, download=99), account(3), *(account(number) for number in range(4, 9)))
    slices = list(sliced(diffs(wanted(after, "eth0"), wanted(before, "eth0")), 2))
    assert [[one.owner for one in each[PEERS].add.values()] for each in slices] == [[4, 5], [6, 7], [8]]
    assert [list(each[CLASSES].change) for each in slices] == [[("wg1", 0x100)], [], []]
    nothing = diffs(wanted(after, "eth0"), wanted(after, "eth0"))
    assert [len(list(sliced(nothing, size))) for size in (1, 2)] == [1, 1]
