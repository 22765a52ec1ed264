"""Where accounts may go, and what of the box is open to them: real packets, both backends."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from agent.diff import diff
from agent.kernel.iptables.forwarding import BROKEN, Forwardings
from agent.kernel.nftables.forwarding import NftForwardings
from agent.model import Reach
from agent.objects import NAT_PORTS, Diff, Forwarding, Opening, Scope
from agent.ways import closed
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, CAROL, INTERNET, Crossing, build, ip, sysctl

SCOPE = Scope(frozenset({"wl0", "wl1"}), "up0")
FIRST = Forwarding("wl0", IPv4Interface("10.66.0.1/24"), "up0", 51820, False, None)
SECOND = Forwarding("wl1", IPv4Interface("10.67.0.1/24"), "up0", 51821, True, IPv4Address("192.0.2.77"))
WANTED = {"wl0": FIRST, "wl1": SECOND}
DOORS: dict[str, type[Forwardings] | type[NftForwardings]] = {"iptables": Forwardings, "nftables": NftForwardings}

METADATA, LAN, SHARED, BENCHMARK = "169.254.169.254", "192.168.7.7", "100.64.3.3", "198.18.0.9"
PRIVATE = "10.20.0.5"
BEHIND_THE_UPLINK = (METADATA, LAN, SHARED, BENCHMARK, PRIVATE)
SIDE, SIDE_HOST = "172.17.0.1", "172.17.0.2"  # another network of the box, as Docker makes them
OWN = "10.66.0.1"


@dataclass
class Box:
    crossing: Crossing
    call: Callable[..., Any]
    backend: str

    def make(self, wanted: dict[str, Forwarding], *opened: Opening) -> None:
        door = DOORS[self.backend](opened)
        difference = diff(wanted, self.call(door.read, SCOPE))
        self.call(door.apply, Diff(difference.add, difference.change))
        self.call(door.apply, Diff(remove=difference.remove))
        assert self.call(door.read, SCOPE) == wanted

    def read(self) -> dict[str, Forwarding]:
        found: dict[str, Forwarding] = self.call(DOORS[self.backend]().read, SCOPE)
        return found

    def switch(self, device: str) -> str:
        text: str = self.call(Path(f"/proc/sys/net/ipv4/conf/{device}/forwarding").read_text)
        return text.strip()

    def switches(self) -> dict[str, str]:
        return {device: self.switch(device) for device in ("all", "default", "wl0", "wl1", "up0", "side0")}

    def connects(self, source: str, destination: str, port: int) -> bool:
        """TCP, as SSH would."""
        with self.crossing.tcp(destination, port) as server, self.crossing.tcp(source) as client:
            server.listen()
            client.settimeout(0.3)
            try:
                client.connect((destination, port))
                return True
            except OSError:
                return False


@pytest.fixture(params=["iptables", "nftables"])
def box(make_namespace: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Box]:
    crossing = build(make_namespace)
    router, internet = crossing.router, crossing.hosts[INTERNET]
    ip(router, "address", "add", "192.0.2.77/32", "dev", "up0")
    ip(router, "route", "add", "default", "via", INTERNET)
    for address in BEHIND_THE_UPLINK:
        ip(internet, "address", "add", f"{address}/32", "dev", "lo")
        crossing.hosts[address] = internet
    side = make_namespace()
    crossing.hosts[SIDE_HOST] = side
    ip(router, "link", "add", "side0", "type", "veth", "peer", "name", "eth0", "netns", side)
    for namespace, device, address in ((router, "side0", SIDE), (side, "eth0", SIDE_HOST)):
        ip(namespace, "address", "add", f"{address}/16", "dev", device)
        ip(namespace, "link", "set", device, "up")
    ip(side, "route", "add", "default", "via", SIDE)
    ip(internet, "route", "add", "172.17.0.0/16", "via", "192.0.2.1")
    for address in ("192.0.2.1", "192.0.2.77", OWN, "10.67.0.1", SIDE):
        crossing.hosts[address] = router
    with enter(router) as call:
        yield Box(crossing, call, request.param)
    crossing.close()


# -- where accounts may go ----------------------------------------------------------------------------------------


def reached(box: Box, *destinations: str) -> set[str]:
    return {there for there in destinations if box.crossing.passes(ALICE, there)}


def test_accounts_reach_the_internet_and_nothing_private_behind_the_uplink(box: Box) -> None:
    box.make(WANTED)
    assert reached(box, INTERNET, *BEHIND_THE_UPLINK, SIDE_HOST) == {INTERNET}
    assert not box.connects(ALICE, METADATA, 80)
    assert not box.crossing.passes(CAROL, METADATA)


TCP_FLAGS = {"RST": 0x04, "nothing": 0x00, "SYN and FIN": 0x03, "SYN and ACK": 0x12, "FIN, PSH, URG": 0x29}


def stray(kind: str) -> bytes:
    """An IP packet from ALICE to the internet that belongs to no connection and begins none."""

    def summed(data: bytes) -> int:
        total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
        return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF

    source, there = IPv4Address(ALICE).packed, IPv4Address(INTERNET).packed
    if kind in TCP_FLAGS:
        payload = struct.pack("!HHIIBBHHH", 4000, 80, 1, 1, 5 << 4, TCP_FLAGS[kind], 1024, 0, 0)
        sum_ = summed(source + there + struct.pack("!BBH", 0, 6, len(payload)) + payload)
        payload, number = payload[:16] + struct.pack("!H", sum_) + payload[18:], 6
    else:
        head = {"echo reply": (0, 0), "timestamp reply": (14, 0), "unreachable": (3, 1)}[kind]
        payload, number = struct.pack("!BBHI", *head, 0, 0) + bytes(32), 1
        payload = payload[:2] + struct.pack("!H", summed(payload)) + payload[4:]
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 7, 0, 64, number, 0, source, there) + payload


@pytest.mark.parametrize("kind", [*TCP_FLAGS, "echo reply", "timestamp reply", "unreachable"])
def test_no_packet_leaves_by_the_uplink_with_an_address_of_a_tunnel(box: Box, kind: str) -> None:
    box.make(WANTED)
    assert box.crossing.passes(ALICE, INTERNET)
    internet = box.crossing.hosts[INTERNET]
    with enter(internet) as there:
        ears = there(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)))
    with ears, enter(box.crossing.hosts[ALICE]) as alice:
        mouth = alice(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        with mouth:
            mouth.sendto(stray(kind), (INTERNET, 0))
            time.sleep(0.1)
        ears.setblocking(False)
        heard = []
        with suppress(BlockingIOError):
            while True:
                heard.append(ears.recv(2048))
    assert IPv4Address(ALICE).packed not in {packet[12:16] for packet in heard}


@pytest.mark.parametrize(("source", "public"), [(ALICE, "192.0.2.1"), (CAROL, "192.0.2.77")])
@pytest.mark.parametrize("port", [22, 8080, 40_000, 51_820])
def test_no_account_chooses_the_port_that_it_has_on_the_uplink(box: Box, source: str, public: str, port: int) -> None:
    """Else its connection stood where a stranger calls a service of the box, or a client its server."""
    box.make(WANTED)
    box_itself, stranger = box.crossing.udp(public, port), box.crossing.udp(INTERNET, 40_001)
    shadow = box.crossing.udp(source, port)
    for _ in range(5):
        shadow.sendto(b"mine", stranger.getsockname())
        came_from = stranger.recvfrom(9)[1]
        assert came_from[0] == public and NAT_PORTS[0] <= came_from[1] <= NAT_PORTS[1]
        stranger.sendto(b"answer", came_from)
        assert shadow.recv(9) == b"answer"
    stranger.sendto(b"to the box", (public, port))
    assert box_itself.recv(20) == b"to the box"
    with box.crossing.tcp(INTERNET, 443) as server, box.crossing.tcp(source, port) as client:
        server.listen()
        client.connect((INTERNET, 443))
        accepted, came_from = server.accept()
        accepted.close()
        assert NAT_PORTS[0] <= came_from[1] <= NAT_PORTS[1]


def test_no_server_listens_where_accounts_come_from(box: Box) -> None:
    ports = (25_001, 32_767)
    box.make(WANTED | {"wl0": replace(FIRST, listen_port=25_000, nat_ports=ports)})
    seen = set()
    for _ in range(50):
        stranger = box.crossing.udp(INTERNET)
        box.crossing.udp(ALICE).sendto(b"x", stranger.getsockname())
        seen.add(stranger.recvfrom(9)[1][1])
    assert len(seen) > 40 and ports[0] <= min(seen) and max(seen) <= ports[1]


def too_big(quoted: tuple[str, int], towards: tuple[str, int], source: str, to: str) -> bytes:
    """An ICMP error with an MTU of 576, as a router on the way would send it about a UDP packet."""

    def header(length: int, number: int, one: str, other: str) -> bytes:
        addresses = IPv4Address(one).packed + IPv4Address(other).packed
        return struct.pack("!BBHHHBBH", 0x45, 0, length, 7, 0x4000, 64, number, 0) + addresses

    inner = header(1400, 17, quoted[0], towards[0]) + struct.pack("!HHHH", quoted[1], towards[1], 1380, 0)
    icmp = struct.pack("!BBHHH", 3, 4, 0, 0, 576) + inner
    total = sum(struct.unpack(f"!{len(icmp) // 2}H", icmp))
    icmp = icmp[:2] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + icmp[4:]
    return header(20 + len(icmp), 1, source, to) + icmp


@pytest.mark.parametrize("whose", ["the box", "his neighbour"])
def test_no_account_makes_errors_about_connections_that_are_not_his(box: Box, whose: str) -> None:
    box.make(WANTED)
    stranger = box.crossing.udp(INTERNET, 40_001)
    other = box.crossing.udp("192.0.2.1" if whose == "the box" else BOB, 51_820)
    other.sendto(b"hello", stranger.getsockname())
    seen = stranger.recvfrom(9)[1]
    stranger.sendto(b"hello", seen)
    assert other.recv(9) == b"hello"
    if whose == "the box":
        forged, to = too_big(seen, stranger.getsockname(), OWN, "192.0.2.1"), "192.0.2.1"
    else:
        forged, to = too_big(stranger.getsockname(), (BOB, 51_820), ALICE, INTERNET), INTERNET
    with enter(box.crossing.hosts[ALICE]) as alice:
        mouth = alice(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        with mouth:
            for _ in range(3):
                mouth.sendto(forged, (to, 0))
            time.sleep(0.2)
    host, destination = (
        (box.crossing.router, INTERNET) if whose == "the box" else (box.crossing.hosts[INTERNET], seen[0])
    )
    command = ["ip", "-n", host, "-json", "route", "get", destination]
    route = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout)[0]
    assert "mtu" not in json.dumps(route)


def test_a_reach_can_be_everything_or_networks_by_name(box: Box) -> None:
    for text, there in (
        ("all", {INTERNET, *BEHIND_THE_UPLINK}),
        ("internet,10.20.0.0/16", {INTERNET, PRIVATE}),
        ("10.20.0.0/16,192.168.7.7/32", {PRIVATE, LAN}),
        ("internet", {INTERNET}),
    ):
        box.make(WANTED | {"wl0": replace(FIRST, reach=Reach.parse(text))})
        assert reached(box, INTERNET, *BEHIND_THE_UPLINK, SIDE_HOST) == there, text
        assert not box.crossing.passes(CAROL, PRIVATE), "each server has its own"


def test_a_narrower_reach_ends_what_runs(box: Box) -> None:
    box.make(WANTED | {"wl0": replace(FIRST, reach=Reach.parse("all"))})
    asking, asked = box.crossing.udp(ALICE), box.crossing.udp(METADATA)
    asking.sendto(b"one", asked.getsockname())
    assert asked.recv(9) == b"one"
    box.make(WANTED)
    asking.sendto(b"two", asked.getsockname())
    asked.settimeout(0.3)
    with pytest.raises(TimeoutError):
        asked.recv(9)


def test_errors_of_the_path_still_reach_an_account(box: Box) -> None:
    """A router with a private address on the way says that a packet is too big: MTU discovery lives from that."""
    box.make(WANTED)
    asking, asked = box.crossing.udp(ALICE), box.crossing.udp(INTERNET)
    asking.sendto(b"one", asked.getsockname())
    _, source = asked.recvfrom(9)
    ip(box.crossing.hosts[ALICE], "route", "flush", "cache")
    sent = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 1400, 0, 0x4000, 60, 17, 0, *map(socket.inet_aton, (source[0], INTERNET))
    )
    sent += struct.pack("!HHHH", source[1], asked.getsockname()[1], 1380, 0)
    error = struct.pack("!BBHHH", 3, 4, 0, 0, 1300) + sent
    total = sum(struct.unpack(f"!{len(error) // 2}H", error))
    total = (total & 0xFFFF) + (total >> 16)
    error = error[:2] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + error[4:]
    asking.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
    asking.connect(asked.getsockname())
    with enter(box.crossing.hosts[INTERNET]) as run:
        raw = run(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        raw.bind((LAN, 0))
        raw.sendto(error, (source[0], 0))
        raw.close()
    for _ in range(100):
        try:
            asking.send(bytes(1372))
        except OSError:
            break
        time.sleep(0.01)
    assert asking.getsockopt(socket.IPPROTO_IP, 14) == 1300  # IP_MTU


# -- the box ------------------------------------------------------------------------------------------------------

ADDRESSES_OF_THE_BOX = (OWN, "10.67.0.1", "192.0.2.1", "192.0.2.77", SIDE)


def test_the_box_is_closed_to_accounts_on_each_of_its_addresses(box: Box) -> None:
    box.make(WANTED)
    for address in ADDRESSES_OF_THE_BOX:
        assert not box.connects(ALICE, address, 2222), address
        assert not box.crossing.passes(ALICE, address, 5353), address
    assert box.connects(INTERNET, "192.0.2.1", 2222)
    assert box.connects(SIDE_HOST, SIDE, 2223)


def ping(box: Box, source: str, destination: str) -> bool:
    with enter(box.crossing.hosts[source]) as run:
        raw = run(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.settimeout(0.3)
    raw.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FE, 1, 0), (destination, 0))
    try:
        while True:
            packet = raw.recv(200)
            if packet[20] == 0:
                return True
    except TimeoutError:
        return False
    finally:
        raw.close()


def test_accounts_may_ping_their_servers_own_address_only(box: Box) -> None:
    box.make(WANTED)
    assert [address for address in ADDRESSES_OF_THE_BOX if ping(box, ALICE, address)] == [OWN]
    assert ping(box, CAROL, "10.67.0.1")


def test_what_is_opened_is_open_at_the_servers_own_address(box: Box) -> None:
    box.make(WANTED)
    assert not box.crossing.passes(ALICE, OWN, 53)
    box.make(WANTED, Opening("tcp", 53), Opening("udp", 53), Opening("tcp", 8080))
    assert box.crossing.passes(ALICE, OWN, 53)
    assert box.connects(ALICE, OWN, 53)
    assert box.connects(ALICE, OWN, 8080)
    for address in ADDRESSES_OF_THE_BOX[1:]:
        assert not box.crossing.passes(ALICE, address, 53), address
    assert not box.connects(ALICE, OWN, 22)
    box.make(WANTED)
    assert not box.crossing.passes(ALICE, OWN, 53)


def test_the_box_gets_answers_to_what_it_began_itself(box: Box) -> None:
    box.make(WANTED)
    asking, asked = box.crossing.udp(OWN), box.crossing.udp(ALICE)
    asking.sendto(b"question", asked.getsockname())
    assert asked.recv(99) == b"question"
    asked.sendto(b"answer", asking.getsockname())
    assert asking.recv(99) == b"answer"
    assert not box.connects(ALICE, OWN, 22)


# -- who passes packets on ----------------------------------------------------------------------------------------


def test_forwarding_is_switched_on_for_links_and_uplink_only_and_put_back(box: Box) -> None:
    before = box.switches()
    box.make(WANTED)
    assert box.switches() == before | {"wl0": "1", "wl1": "1", "up0": "1"}
    assert box.crossing.passes(ALICE, INTERNET)
    assert not box.crossing.passes(SIDE_HOST, INTERNET), "the side network was not routed before"
    assert not box.crossing.passes(INTERNET, SIDE_HOST), "nor to it"
    box.make({})
    assert box.switch("up0") == "0"
    assert not box.crossing.passes(INTERNET, SIDE_HOST)


def test_a_box_that_is_a_router_stays_one(box: Box) -> None:
    """Docker wants it so."""
    sysctl(box.crossing.router, "ipv4/ip_forward", "1")
    before = box.switches()
    box.make(WANTED)
    assert box.crossing.passes(SIDE_HOST, INTERNET) and box.crossing.passes(INTERNET, SIDE_HOST)
    box.make({})
    assert box.switches() == before
    assert box.crossing.passes(INTERNET, SIDE_HOST)


def test_a_box_that_becomes_a_router_or_stops_being_one_is_followed(box: Box) -> None:
    box.make(WANTED)
    sysctl(box.crossing.router, "ipv4/ip_forward", "1")
    assert box.read().keys() == {"wl0", "wl1", BROKEN}
    box.make(WANTED)
    assert box.crossing.passes(INTERNET, SIDE_HOST)
    sysctl(box.crossing.router, "ipv4/ip_forward", "0")
    assert box.read().keys() == {BROKEN}
    box.make(WANTED)
    assert box.crossing.passes(ALICE, INTERNET)
    assert not box.crossing.passes(INTERNET, SIDE_HOST)


def test_an_uplink_that_passed_packets_on_before_us_still_does_afterwards(box: Box) -> None:
    for device in ("up0", "side0"):
        sysctl(box.crossing.router, f"ipv4/conf/{device}/forwarding", "1")
    before = box.switches()
    box.make(WANTED)
    assert box.crossing.passes(INTERNET, SIDE_HOST)
    box.make(WANTED | {"wl0": replace(FIRST, internal_traffic=True)})
    assert box.crossing.passes(INTERNET, SIDE_HOST)
    box.make({"wl1": SECOND})
    box.make({})
    assert box.switches() == before | {"wl0": "1", "wl1": "1"}, "links go with their switch"


@pytest.mark.parametrize("device", ["wl0", "up0"])
def test_a_switch_that_somebody_turned_off_is_found_and_repaired(box: Box, device: str) -> None:
    box.make(WANTED)
    sysctl(box.crossing.router, f"ipv4/conf/{device}/forwarding", "0")
    assert not box.crossing.passes(ALICE, INTERNET) or device == "up0"
    assert box.read().keys() == ({"wl1"} if device == "wl0" else {"wl0", "wl1", BROKEN})
    box.make(WANTED)
    assert box.switch(device) == "1"
    assert box.crossing.passes(ALICE, INTERNET)


def test_an_uplink_that_is_one_no_more_is_switched_back(box: Box) -> None:
    box.make(WANTED)
    box.make({name: replace(one, uplink="side0") for name, one in WANTED.items()})
    assert (box.switch("up0"), box.switch("side0")) == ("0", "1")


def test_without_an_uplink_no_way_out_stands_open_and_the_links_are_no_way_through(box: Box) -> None:
    box.make(WANTED)
    before = box.switches()
    door = DOORS[box.backend]()
    box.call(door.apply, closed({}, box.read()))
    assert not box.crossing.passes(ALICE, INTERNET)
    assert not box.crossing.passes(ALICE, SIDE_HOST)
    assert not any(box.read())  # never taken for right
    assert box.switches() == before
    box.make(WANTED)
    assert box.crossing.passes(ALICE, INTERNET)
    assert box.switches() == before


def test_lost_rules_do_not_make_the_box_a_router(box: Box) -> None:
    box.make(WANTED)
    box.call(DOORS[box.backend]().clear)
    box.make(WANTED)
    assert not box.crossing.passes(INTERNET, SIDE_HOST)
    assert box.crossing.passes(BOB, INTERNET)
    box.make({})
    assert box.switch("up0") == "0"
