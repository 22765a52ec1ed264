"""The rules of a server on real packets, by both backends: who reaches whom, from which address, and repairs.

What only iptables can be damaged with is here too; test_nft_forwarding.py has the same for nftables.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest

from agent.diff import diff
from agent.kernel.iptables.forwarding import Forwardings
from agent.kernel.iptables.shown import shown as iptables_shown
from agent.kernel.nftables.forwarding import NftForwardings
from agent.kernel.nftables.shown import shown as nft_shown
from agent.model import CLOSED, Reach
from agent.objects import Diff, Forwarding, Scope
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, CAROL, INTERNET, Crossing, build, ip, iptables, nft, saved

SCOPE = Scope(frozenset({"wl0", "wl1"}), "up0")
DNAT = "-m conntrack --ctstate DNAT --ctdir"
ROUTER = "192.0.2.1"
FIRST = Forwarding("wl0", IPv4Interface("10.66.0.1/24"), "up0", 51820, False, None)
SECOND = Forwarding("wl1", IPv4Interface("10.67.0.1/24"), "up0", 51821, True, IPv4Address("192.0.2.77"))
WANTED = {"wl0": FIRST, "wl1": SECOND}
DOORS: dict[str, type[Forwardings] | type[NftForwardings]] = {"iptables": Forwardings, "nftables": NftForwardings}
BOTH = pytest.mark.parametrize("run", list(DOORS), indirect=True)


@dataclass
class Run:
    """Calls on a thread in the router."""

    call: Callable[..., Any]
    door: Forwardings | NftForwardings

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.call(function, *args)


@pytest.fixture
def crossing(make_namespace: Callable[[], str]) -> Iterator[Crossing]:
    made = build(make_namespace)
    ip(made.router, "address", "add", "192.0.2.77/32", "dev", "up0")
    yield made
    made.close()


@pytest.fixture
def run(crossing: Crossing, request: pytest.FixtureRequest) -> Iterator[Run]:
    """With iptables the router's own rules let nothing through and nothing in; ours open the way nevertheless.

    With nftables they cannot, so there the router is open.
    """
    backend = getattr(request, "param", "iptables")
    for chain in ("FORWARD", "INPUT"):
        iptables(crossing.router, f"-P {chain} {'DROP' if backend == 'iptables' else 'ACCEPT'}")
    with enter(crossing.router) as call:
        yield Run(call, DOORS[backend]())


def read(run: Run) -> dict[str, Forwarding]:
    found: dict[str, Forwarding] = run(run.door.read, SCOPE)
    return found


def make(run: Run, wanted: dict[str, Forwarding]) -> Diff[str, Forwarding]:
    """One pass, in the writer's order: what is missing first, what is too much last."""
    difference = diff(wanted, read(run))
    assert run(run.door.apply, Diff(difference.add, difference.change)) == {}
    assert run(run.door.apply, Diff(remove=difference.remove)) == {}
    return difference


def all_tables(crossing: Crossing, *, foreign_only: bool = False) -> list[str]:
    tables = ("mangle", "nat", "filter")
    lines = [line for table in tables for line in saved(crossing.router, table, foreign_only=foreign_only)]
    return lines if foreign_only else lines + nft(crossing.router, "list ruleset").splitlines()


# -- who reaches whom ---------------------------------------------------------------------------------------------


def seen_source(crossing: Crossing, client: str) -> str:
    """From which address the internet sees a client's packet; the answer has to come back too."""
    sender, receiver = crossing.udp(client), crossing.udp(INTERNET)
    sender.sendto(b"question", receiver.getsockname())
    question, source = receiver.recvfrom(100)
    receiver.sendto(b"answer to " + question, source)
    assert sender.recv(100) == b"answer to question"
    return str(source[0])


@BOTH
def test_accounts_reach_the_internet_from_the_right_address(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    assert seen_source(crossing, ALICE) == ROUTER
    assert seen_source(crossing, CAROL) == "192.0.2.77"
    make(run, WANTED | {"wl1": replace(SECOND, external_ip=None)})
    assert seen_source(crossing, CAROL) == ROUTER


@BOTH
def test_nobody_reaches_an_account_that_did_not_ask(crossing: Crossing, run: Run) -> None:
    iptables(crossing.router, "-P FORWARD ACCEPT")
    make(run, WANTED)
    assert not crossing.passes(INTERNET, ALICE)
    assert not crossing.passes(ALICE, CAROL)
    assert not crossing.passes(CAROL, ALICE)


@BOTH
@pytest.mark.parametrize("internal", [False, True])
def test_accounts_of_a_server_reach_one_another_only_if_they_may(crossing: Crossing, run: Run, internal: bool) -> None:
    make(run, {"wl0": replace(FIRST, internal_traffic=not internal)})
    make(run, {"wl0": replace(FIRST, internal_traffic=internal)})
    assert crossing.passes(ALICE, BOB) is internal


@BOTH
def test_a_foreign_source_address_does_not_pass(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    ip(crossing.hosts[ALICE], "address", "add", "10.66.9.9/32", "dev", "eth0")
    ip(crossing.router, "route", "add", "10.66.9.9/32", "dev", "wl0")
    crossing.hosts["10.66.9.9"] = crossing.hosts[ALICE]
    assert not crossing.passes("10.66.9.9", INTERNET)


def test_input_opens_the_port_of_the_server_and_nothing_else(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    assert crossing.passes(INTERNET, ROUTER, 51820)
    assert crossing.passes(INTERNET, ROUTER, 51821)
    assert not crossing.passes(INTERNET, ROUTER, 51822)
    for client in (ALICE, CAROL):
        assert not crossing.passes(client, ROUTER, 51820)


# -- MSS ----------------------------------------------------------------------------------------------------------


def mss_seen(crossing: Crossing, listener: str, sniffer: str, flags: int) -> int:
    """The MSS in the first TCP packet with these flags that comes in at `sniffer`, when the other end connects."""

    def open_sniffer() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        made.settimeout(5)
        return made

    server = crossing.tcp(listener)
    server.listen()
    with enter(crossing.hosts[sniffer]) as call:
        packets: socket.socket = call(open_sniffer)
    crossing.sockets.append(packets)
    client = crossing.tcp(ALICE if listener == INTERNET else INTERNET)
    client.connect(server.getsockname())
    while True:
        packet, (_, _, kind, *_) = packets.recvfrom(2000)
        tcp = packet[20:]
        if kind != socket.PACKET_OUTGOING and packet[9] == socket.IPPROTO_TCP and tcp[13] & 0x12 == flags:
            assert tcp[20:22] == b"\x02\x04"  # the MSS option comes first in what Linux sends
            (mss,) = struct.unpack_from(">H", tcp, 22)
            return int(mss)


@BOTH
def test_the_mss_is_clamped_to_the_path_both_ways(crossing: Crossing, run: Run) -> None:
    ip(crossing.router, "link", "set", "wl0", "mtu", "1280")
    make(run, {})
    make(run, WANTED)
    assert mss_seen(crossing, INTERNET, INTERNET, 0x02) == 1240  # SYN of alice
    assert mss_seen(crossing, INTERNET, ALICE, 0x12) == 1240  # SYN-ACK to her


# -- reading, repairing, removing ---------------------------------------------------------------------------------


@BOTH
def test_what_was_applied_reads_back_equal_and_goes_without_a_trace(crossing: Crossing, run: Run) -> None:
    iptables(crossing.router, "-A FORWARD -s 203.0.113.7 -j DROP")
    iptables(crossing.router, "-t nat -A POSTROUTING -s 10.99.0.0/24 -o up0 -j MASQUERADE")
    assert read(run) == {}
    before = all_tables(crossing)
    make(run, WANTED)
    assert read(run) == WANTED
    text = all_tables(crossing)
    assert make(run, WANTED) == Diff()
    run(run.door.apply, Diff(add=WANTED))
    assert all_tables(crossing) == text
    for changed in (
        replace(FIRST, internal_traffic=True),
        replace(FIRST, external_ip=IPv4Address("192.0.2.78")),
        replace(FIRST, listen_port=5000),
        replace(FIRST, address=IPv4Interface("10.66.0.1/16")),
        replace(FIRST, address=IPv4Interface("10.66.0.9/24")),
        replace(FIRST, uplink="eth1"),
        *(replace(FIRST, reach=Reach.parse(text)) for text in ("all", "10.1.0.0/16", "internet,10.0.0.0/8,192.0.2.9")),
    ):
        make(run, WANTED | {"wl0": changed})
        assert read(run) == WANTED | {"wl0": changed}
    make(run, {"wl1": SECOND})
    assert read(run) == {"wl1": SECOND}
    make(run, {})
    assert all_tables(crossing) == before


def test_the_rules_are_what_an_administrator_would_have_written(crossing: Crossing, run: Run) -> None:
    reach = Reach(True, (IPv4Network("10.20.0.0/16"),))
    make(run, {"wl0": replace(FIRST, external_ip=IPv4Address("192.0.2.77"), reach=reach)})
    rules = [
        line
        for t in ("mangle", "nat", "filter")
        for line in saved(crossing.router, t, counters=False)
        if "-A WL" in line
    ]
    assert rules == [
        "-A WL_MSS -i wl0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "-A WL_MSS -o wl0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "-A WL_NAT -s 10.66.0.0/24 -o up0 -p tcp -j SNAT --to-source 192.0.2.77:10000-32767 --random-fully",
        "-A WL_NAT -s 10.66.0.0/24 -o up0 -p udp -j SNAT --to-source 192.0.2.77:10000-32767 --random-fully",
        "-A WL_NAT -s 10.66.0.0/24 -o up0 -j SNAT --to-source 192.0.2.77",
        *(
            f"-A WL_FORWARD -o {link} {DNAT} ORIGINAL -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT"
            for link in ("wg+", "ipsec0")
        ),
        *(
            f"-A WL_FORWARD -i {link} {DNAT} REPLY -m conntrack --ctstate ESTABLISHED -j ACCEPT"
            for link in ("wg+", "ipsec0")
        ),
        "-A WL_FORWARD -i wl0 -m conntrack --ctstate INVALID,RELATED -j DROP",
        "-A WL_FORWARD -s 10.66.0.0/24 -d 10.20.0.0/16 -i wl0 -o up0 -j ACCEPT",
        "-A WL_FORWARD -s 10.66.0.0/24 -i wl0 -o up0 -g WL_REACH",
        "-A WL_FORWARD -d 10.66.0.0/24 -i up0 -o wl0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A WL_FORWARD -i wl0 -o wl0 -j DROP",
        "-A WL_FORWARD -i wl0 -j DROP",
        "-A WL_FORWARD -o wl0 -j DROP",
        "-A WL_FORWARD -i up0 -j DROP",
        "-A WL_INPUT -i wl0 -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j ACCEPT",
        "-A WL_INPUT -d 10.66.0.1/32 -i wl0 -p icmp -m icmp --icmp-type 8 -j ACCEPT",
        "-A WL_INPUT -i wl0 -j DROP",
        "-A WL_INPUT ! -i wl0 -p udp -m udp --dport 51820 -j ACCEPT",
        *(f"-A WL_REACH -d {network} -j DROP" for network in CLOSED),
        "-A WL_REACH -j ACCEPT",
    ]


DAMAGE = {
    "a hook is gone": ["-D FORWARD -j WL_FORWARD"],
    "the hook of MSS is behind a strange rule": ["-t mangle -I FORWARD -s 203.0.113.9 -j ACCEPT"],
    "a hook is there twice": ["-t nat -A POSTROUTING -j WL_NAT"],
    "two ways in from another chain": ["-N other", "-A other -j WL_INPUT", "-A other", "-A other -j WL_FORWARD"],
    "NAT is flushed": ["-t nat -F WL_NAT"],
    "a rule is gone": ["-D WL_FORWARD 7"],
    "the last rule is gone": ["-D WL_FORWARD 16"],
    "the order is wrong": ["-D WL_FORWARD 9", "-I WL_FORWARD -i wl0 -j DROP"],
    "the rule that keeps the uplink from other networks is gone": ["-D WL_FORWARD 17"],
    "a closed network is open": ["-D WL_REACH 5"],
    "what is closed does not come first": ["-D WL_INPUT 3", "-A WL_INPUT -i wl0 -j DROP"],
    "the box is open": ["-D WL_INPUT 3"],
    "a rule is there twice": ["-A WL_FORWARD -i wl0 -j DROP"],
    "a strange rule is inserted": ["-I WL_FORWARD -p tcp -m tcp --dport 22 -j ACCEPT"],
    "one chain of ours leads to another": ["-I WL_INPUT -j WL_FORWARD"],
    "a rule has another port": ["-R WL_INPUT 7 ! -i wl0 -p udp --dport 9 -j ACCEPT"],
    "rules of a link that nobody wants": [
        "-A WL_FORWARD -i wl9 -j DROP",
        "-A WL_FORWARD -s 10.9.0.0/24 -i wl9 -o up0 -j ACCEPT",
        "-A WL_INPUT -i wl9 -d 10.9.0.1 -p icmp --icmp-type 8 -j ACCEPT",
        "-A WL_INPUT ! -i wl9 -p udp --dport 9 -j ACCEPT",
        "-t nat -A WL_NAT -s 10.9.0.0/24 -o up0 -j MASQUERADE",
    ],
}


@pytest.mark.parametrize("commands", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_seen_and_repaired_in_one_pass(crossing: Crossing, run: Run, commands: list[str]) -> None:
    iptables(crossing.router, "-A FORWARD -s 203.0.113.7 -j DROP")
    iptables(crossing.router, "-t nat -A POSTROUTING -s 10.99.0.0/24 -o up0 -j MASQUERADE")
    make(run, WANTED)
    seen_source(crossing, CAROL)
    counted = "[1:46] -A WL_FORWARD -d 10.67.0.0/24 -i up0 -o wl1"
    assert any(line.startswith(counted) for line in saved(crossing.router, "filter"))
    for command in commands:
        iptables(crossing.router, command)
    foreign = all_tables(crossing, foreign_only=True)

    assert read(run) != WANTED
    make(run, WANTED)

    assert read(run) == WANTED
    assert all_tables(crossing, foreign_only=True) == foreign
    assert any(line.startswith(counted) for line in saved(crossing.router, "filter"))
    assert not crossing.passes(ALICE, CAROL)
    assert seen_source(crossing, ALICE) == ROUTER


def test_an_administrator_may_put_rules_before_ours(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    assert crossing.passes(ALICE, INTERNET)
    iptables(crossing.router, f"-I FORWARD -s {ALICE} -j DROP")
    foreign = all_tables(crossing, foreign_only=True)
    assert read(run) == WANTED
    make(run, WANTED)
    assert all_tables(crossing, foreign_only=True) == foreign
    assert not crossing.passes(ALICE, INTERNET)


def test_flushed_tables_are_rebuilt(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    for commands in (["-F"], ["-F", "-X"]):
        for table in ("filter", "nat", "mangle"):
            for command in commands:
                iptables(crossing.router, f"-t {table} {command}")
        make(run, WANTED)
        assert read(run) == WANTED
    assert seen_source(crossing, ALICE) == ROUTER


@BOTH
def test_it_tells_whether_it_stands(crossing: Crossing, run: Run) -> None:
    assert not run(run.door.is_there)
    make(run, {"wl0": FIRST})
    assert run(run.door.is_there)
    run(run.door.apply, Diff(remove={"wl0": FIRST}))
    assert not run(run.door.is_there)


@BOTH
def test_what_is_shown_of_a_server_is_what_stands_and_what_it_counted(run: Run, crossing: Crossing) -> None:
    make(run, WANTED)
    assert seen_source(crossing, ALICE) == ROUTER
    shown = iptables_shown if isinstance(run.door, Forwardings) else nft_shown
    first = run(shown, "wl0", FIRST.network)
    lines = [(rule.source, rule.destination, rule.target) for rule in first.forward]
    assert lines == [
        ("10.66.0.0/24", "internet", "ACCEPT"),
        ("0.0.0.0/0", "10.66.0.0/24", "ACCEPT"),
        ("10.66.0.0/24", "10.66.0.0/24", "DROP"),
        ("10.66.0.0/24", "0.0.0.0/0", "DROP"),
        ("0.0.0.0/0", "10.66.0.0/24", "DROP"),
    ]
    [nat] = first.nat
    assert (nat.source, nat.destination, nat.target) == ("10.66.0.0/24", "0.0.0.0/0", "MASQUERADE")
    counted = [(nat.packets, nat.octets), *((rule.packets, rule.octets) for rule in first.forward[:2])]
    if isinstance(run.door, Forwardings):
        assert all(packets and octets and octets > 20 * packets for packets, octets in counted)
    else:
        assert counted == [(None, None)] * 3
    second = run(shown, "wl1", SECOND.network)
    assert [rule.target for rule in second.nat] == ["SNAT to:192.0.2.77"]
    assert ("10.67.0.0/24", "10.67.0.0/24", "ACCEPT") in [(r.source, r.destination, r.target) for r in second.forward]
    nothing = run(shown, "wl9", IPv4Network("10.99.0.0/24"))
    assert (nothing.nat, nothing.forward) == ((), ())
