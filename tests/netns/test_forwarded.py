"""Only what is forwarded counts, on the interface that it belongs to: marks and forwarding together, real packets.

By both backends. wg0 has two accounts that may not reach one another, wg1 one whose server lets its accounts talk.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from agent.diff import diff
from agent.doors import Doors
from agent.kernel.linux import backend_doors
from agent.objects import NO_COUNTERS, Counters, Diff, Forwarding, Mark, Scope
from tests.netns.conftest import enter
from tests.netns.crossing import (
    ALICE,
    BOB,
    CAROL,
    DEADLINE,
    INTERNET,
    Crossing,
    build,
    ip,
    iptables,
    nft,
    sysctl,
    watch,
    watched,
)
from tests.netns.test_marks import flood

SCOPE = Scope(frozenset({"wg0", "wg1"}), "up0")
FIRST = Forwarding("wg0", IPv4Interface("10.66.0.1/24"), "up0", 51820, False, None)
SECOND = Forwarding("wg1", IPv4Interface("10.67.0.1/24"), "up0", 51821, True, IPv4Address("192.0.2.77"))
ADDRESSES = {name: IPv4Address(name) for name in (ALICE, BOB, CAROL)}
WANTED = {address: Mark(address, 100 + i) for i, address in enumerate(ADDRESSES.values())}
UP0 = "192.0.2.1"

# The rules of the version before, under FORWARD, with the counters as they stand.
OLD_LAYOUT = {
    "iptables": (
        "-I FORWARD -j WL_MARK",
        "-F WL_MARK",
        "-A WL_MARK -j WL_FROM",
        "-A WL_MARK -j WL_TO",
        "-D POSTROUTING -j WL_MARK",
        "-D OUTPUT -j WL_OWN",
        "-F WL_OWN",
        "-X WL_OWN",
    ),
    "nftables": (
        "delete chain ip wirelane marks",
        "add chain ip wirelane marks { type filter hook forward priority -149; policy accept; }",
        "add rule ip wirelane marks meta mark set ip saddr map @from",
        "add rule ip wirelane marks meta mark set ip daddr map @towards",
    ),
}


@dataclass
class Box:
    """The router as an agent holds it."""

    crossing: Crossing
    call: Callable[..., Any]
    backend: str

    @property
    def doors(self) -> Doors:
        return backend_doors()[self.backend]

    def settle(self, *forwardings: Forwarding) -> None:
        self.call(self.doors.forwarding.apply, Diff(add={one.interface: one for one in forwardings}))
        self.mark(WANTED)

    def mark(self, wanted: dict[IPv4Address, Mark]) -> None:
        self.call(self.doors.marks.apply, diff(wanted, self.call(self.doors.marks.read, SCOPE)))

    def bill(self) -> dict[str, Counters]:
        """Of those that have been counted for anything."""
        found = self.call(self.doors.marks.counters)
        return {name: c for name, address in ADDRESSES.items() if (c := found[address]) != NO_COUNTERS}

    def back_to_the_old_layout(self) -> None:
        """All at once."""
        lines = "\n".join(OLD_LAYOUT[self.backend])
        if self.backend == "iptables":
            command, lines = ["iptables-legacy-restore", "-w", "--noflush"], f"*mangle\n{lines}\nCOMMIT\n"
        else:
            command = ["nft", "-f", "-"]
        inside = ["ip", "netns", "exec", self.crossing.router, *command]
        subprocess.run(inside, input=lines, check=True, timeout=DEADLINE, text=True)


@pytest.fixture(params=["iptables", "nftables"])
def box(make_namespace: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Box]:
    crossing = build(make_namespace, "wg")
    ip(crossing.router, "address", "add", "192.0.2.77/32", "dev", "up0")
    with enter(crossing.router) as call:
        made = Box(crossing, call, request.param)
        made.settle(FIRST, SECOND)
        yield made
    crossing.close()


def raw_udp(source: str, destination: str, size: int) -> bytes:
    """A whole IP packet, with any source."""
    udp = struct.pack("!HHHH", 4000, 4000, size - 20, 0) + bytes(size - 28)
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    return struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, 17, 0) + addresses + udp


def inject(crossing: Crossing, host: str, *packets: bytes) -> None:
    """Sends packets with whatever source they have, from a host."""
    with enter(crossing.hosts[host]) as run:
        raw = run(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        for packet in packets:
            raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
        raw.close()


# -- what is dropped is nobody's ----------------------------------------------------------------------------------


def test_packets_to_a_neighbour_that_isolation_protects_are_on_nobodys_bill(box: Box) -> None:
    for _ in range(3):
        assert not box.crossing.passes(ALICE, BOB)
        assert not box.crossing.passes(ALICE, CAROL)
        assert not box.crossing.passes(CAROL, BOB)
    assert box.bill() == {}


def test_packets_that_a_stranger_on_the_uplink_sends_are_on_nobodys_bill(box: Box) -> None:
    sysctl(box.crossing.router, "ipv4/ip_forward", "1")  # a router anyway: it goes round the corner for everybody
    box.settle(FIRST, SECOND)
    sysctl(box.crossing.router, "ipv4/conf/all/rp_filter", "0")
    sysctl(box.crossing.router, "ipv4/conf/up0/rp_filter", "0")
    for address in (ALICE, BOB, CAROL):
        assert not box.crossing.passes(INTERNET, address)
    # As if they came from an account: to another one, and round the corner back to the uplink.
    inject(box.crossing, INTERNET, raw_udp(ALICE, BOB, 500), raw_udp(ALICE, CAROL, 500))
    ip(box.crossing.hosts[INTERNET], "route", "add", "198.51.100.0/24", "via", UP0)
    ip(box.crossing.router, "route", "add", "198.51.100.0/24", "via", INTERNET)
    watch(box.crossing.router, f"ip saddr {ALICE} ip daddr 198.51.100.9")
    inject(box.crossing, INTERNET, raw_udp(ALICE, "198.51.100.9", 500))
    assert watched(box.crossing.router) == [1], "it did go round the corner"
    assert box.bill() == {}


@pytest.mark.parametrize("by", ["iptables", "nftables before", "nftables behind"])
@pytest.mark.parametrize("source", [ALICE, INTERNET])
def test_packets_that_the_host_drops_are_on_nobodys_bill(box: Box, by: str, source: str) -> None:
    crossing = box.crossing
    answered = crossing.udp(INTERNET, 7000)
    asking = crossing.udp(ALICE, 7000)
    asking.sendto(bytes(72), (INTERNET, 7000))
    peer = answered.recvfrom(100)[1]
    answered.sendto(bytes(172), peer)
    asking.recv(200)
    assert box.bill() == {ALICE: Counters(1, 200, 1, 100)}
    if by == "iptables":
        iptables(crossing.router, "-I FORWARD -p udp -j DROP")
    else:
        nft(crossing.router, "add table inet host")
        place = "-200" if by == "nftables before" else "10"
        nft(crossing.router, f"add chain inet host forward {{ type filter hook forward priority {place}; }}")
        nft(crossing.router, "add rule inet host forward meta l4proto udp drop")
    (asking.sendto(bytes(72), (INTERNET, 7000)) if source == ALICE else answered.sendto(bytes(72), peer))
    for one in (asking, answered):
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            one.recv(200)
    assert box.bill() == {ALICE: Counters(1, 200, 1, 100)}


def test_what_the_box_itself_sends_is_on_nobodys_bill(box: Box) -> None:
    crossing = box.crossing
    inside = crossing.udp("10.66.0.1", 5353)
    asking = crossing.udp(ALICE, 5353)
    inside.sendto(bytes(472), (ALICE, 5353))
    assert len(asking.recv(500)) == 472
    # An ICMP error, and the reset that the host answers with in the name of somebody else.
    iptables(crossing.router, "-I FORWARD -i wg0 -p tcp -j REJECT --reject-with tcp-reset")
    iptables(crossing.router, "-I FORWARD -i wg0 -p udp --dport 9 -j REJECT")
    refused = crossing.tcp(ALICE)
    with pytest.raises(ConnectionRefusedError):
        refused.connect((INTERNET, 80))
    asking.connect((INTERNET, 9))
    asking.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        asking.recv(10)
    assert box.bill() == {}


# -- what is forwarded counts, as before --------------------------------------------------------------------------


def test_accounts_that_may_talk_are_billed_at_both_ends_and_shaped_by_the_receivers_mark(box: Box) -> None:
    box.settle(Forwarding("wg0", FIRST.address, "up0", 51820, True, None))
    watch(box.crossing.router, "oifname wg0 meta mark 101", "oifname wg0 meta mark != 101")
    box.crossing.send(ALICE, BOB, 3, 400)
    assert box.bill() == {ALICE: Counters(0, 0, 3, 1200), BOB: Counters(3, 1200, 0, 0)}
    assert watched(box.crossing.router) == [3, 0]


def test_translated_and_fragmented_packets_count_to_the_byte(box: Box) -> None:
    """A datagram of several fragments counts as the one packet that the box sees between them."""
    crossing = box.crossing
    there = crossing.udp(INTERNET, 7000)
    for size in (100, 1500, 6000):
        asking = crossing.udp(CAROL)
        before = box.bill().get(CAROL, NO_COUNTERS)
        asking.sendto(bytes(size - 28), (INTERNET, 7000))
        data, source = there.recvfrom(9000)
        assert source[0] == "192.0.2.77" and len(data) == size - 28
        there.sendto(bytes(size - 28), source)
        assert len(asking.recv(9000)) == size - 28
        now = box.bill()[CAROL]
        assert now.upload_bytes - before.upload_bytes == now.download_bytes - before.download_bytes == size
    assert box.bill().keys() == {CAROL}


def test_a_connection_with_a_clamped_mss_counts_as_the_receiver_sees_it(box: Box) -> None:
    crossing = box.crossing
    ip(crossing.router, "link", "set", "wg1", "mtu", "1280")
    listening, asking = crossing.tcp(INTERNET, 8000), crossing.tcp(CAROL)
    listening.listen(1)
    nft(crossing.router, "add table ip sizes")
    nft(crossing.router, "add chain ip sizes leaving { type filter hook postrouting priority 300; }")
    nft(crossing.router, f"add rule ip sizes leaving oifname wg1 ip daddr {CAROL} counter")
    nft(crossing.router, "add rule ip sizes leaving oifname up0 tcp dport 8000 counter")
    asking.connect((INTERNET, 8000))
    accepted, _ = listening.accept()
    accepted.settimeout(2)
    for sender, receiver in ((asking, accepted), (accepted, asking)):
        sender.sendall(bytes(200_000))
        left = 200_000
        while left:
            left -= len(receiver.recv(65536))
    asking.close()
    accepted.close()
    lines = nft(crossing.router, "list table ip sizes").splitlines()
    seen = [int(line.split()[-1]) for line in lines if "counter" in line]
    bill = box.bill()[CAROL]
    assert [bill.download_bytes, bill.upload_bytes] == seen
    assert min(seen) > 200_000


# -- an upgrade ---------------------------------------------------------------------------------------------------


def test_an_upgrade_moves_the_rules_of_the_version_before_and_no_packet_passes_unmarked_or_uncounted(box: Box) -> None:
    crossing = box.crossing
    watch(crossing.router, *(f"oifname up0 udp dport 7000 meta mark {which}" for which in ("100", "!= 100")))
    for _ in range(10):
        box.back_to_the_old_layout()
        with flood(crossing, ALICE, INTERNET, 7000):
            time.sleep(0.03)
            assert box.call(box.doors.marks.read, SCOPE) != WANTED
            box.mark(WANTED)
            assert box.call(box.doors.marks.read, SCOPE) == WANTED
            time.sleep(0.03)
    if box.backend == "iptables":
        assert "WL_MARK" not in iptables(crossing.router, "-t mangle -S FORWARD")
    marked, unmarked = watched(crossing.router)
    assert marked > 100 and unmarked == 0
    assert box.bill() == {ALICE: Counters(0, 0, marked, marked * 100)}
