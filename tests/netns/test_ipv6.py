"""Both families in one tunnel, with real packets: one limit, one sum, and nobody else's address.

The agent's own writer, file and doors in a router's namespace, a WireGuard client on one side of it and the internet on
the other. IPv4 is marked by each backend, IPv6 by nftables with both.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

import pytest

from agent.desired import Desired, Snapshot
from agent.errors import KernelError
from agent.kernel.host import conntrack, ipv6_forward
from agent.kernel.linux import LinuxKernel
from agent.kernel.nftables import nft
from agent.live import LiveReads, Look
from agent.model import Account, Secret
from agent.store import open_store
from agent.usage import Usage
from agent.writer import Writer
from gateway import model as product
from gateway.profile import config_text
from tests.fakes.state import account, server
from tests.netns.conftest import enter
from tests.netns.tunnels import end_all, eventually, missing, new_keys, run, unique_name, within

LINK = f"wg{os.getpid()}"  # its socket lies in a folder that all namespaces share
PORT = 51820
OUTSIDE, OUTSIDE_IPV6 = "198.51.100.2", "2001:db8:1::2"
UPLINK_IPV6 = "2001:db8:1::1"
NETWORK = IPv6Interface("2001:db8:77::1/64")
CLIENTS = {2: "2001:db8:77::2", 3: "2001:db8:77::3"}
SIZE = 1000  # bytes of payload
HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}
RATE = 8  # Mbit/s


class Stage:
    """`home` is the node, `far` the internet. Clients are accounts 2 and 3."""

    def __init__(self, make_namespace: Callable[[], str], backend: str, path: Path) -> None:
        self.home, self.far = make_namespace(), make_namespace()
        self.clients = {number: make_namespace() for number in CLIENTS}
        self.keys = {number: new_keys() for number in CLIENTS}
        self.server_key, self.server_public = new_keys()
        self.backend, self.store = backend, open_store(path)
        self.folder = path.parent
        self._wire()
        self.kernel = LinuxKernel("userspace", "up0", backend, connections=1000)
        self.writer = Writer(self.kernel, Usage(self.store, time.time))

    def _wire(self) -> None:
        ip(f"-n {self.home} link add up0 type veth peer name far0 netns {self.far}")
        for name, device, addresses in (
            (self.home, "up0", ("198.51.100.1/24", f"{UPLINK_IPV6}/64")),
            (self.far, "far0", (f"{OUTSIDE}/24", f"{OUTSIDE_IPV6}/64")),
        ):
            for address in addresses:
                ip(f"-n {name} address add {address} dev {device}" + (" nodad" if ":" in address else ""))
            ip(f"-n {name} link set {device} up")
        ip(f"-n {self.home} route add default via {OUTSIDE}")
        ip(f"-n {self.home} route add default via {OUTSIDE_IPV6}")
        ip(f"-n {self.far} route add {NETWORK.network} via {UPLINK_IPV6}")
        for number, name in self.clients.items():
            ip(f"-n {self.home} link add c{number} type veth peer name outer netns {name}")
            ip(f"-n {self.home} address add 192.0.2.{number * 4 + 1}/30 dev c{number}")
            ip(f"-n {name} address add 192.0.2.{number * 4 + 2}/30 dev outer")
            ip(f"-n {self.home} link set c{number} up")
            ip(f"-n {name} link set outer up")

    def desired(self, *accounts: Account, **of_server: Any) -> Desired:
        values: dict[str, Any] = {"nat_ipv6": False, "address_ipv6": NETWORK, **of_server}
        one = server(
            interface=LINK,
            listen_port=PORT,
            private_key=Secret(self.server_key),
            address=IPv4Interface("10.77.0.1/24"),
            **values,
        )
        wanted = Desired.of(self.store.epoch, Snapshot(1, (one,), accounts, "UTC"))
        self.store.save_snapshot(wanted)
        return wanted

    def account(self, number: int, **changes: Any) -> Account:
        own = IPv6Address(CLIENTS[number])
        values: dict[str, Any] = {"download": 0, "upload": 0, "address_ipv6": own, **changes}
        address = IPv4Interface(f"10.77.0.{number}/32").ip
        return account(number, address=address, public_key=self.keys[number][1], **values)

    def make(self, desired: Desired, here: Callable[..., Any]) -> None:
        report = here(self.writer.full, desired)
        assert not report.failures, report.failures

    def connect(self, number: int) -> None:
        """From the text that a customer gets, and one address more that is not his."""
        name, link, text = self.clients[number], unique_name(), self.config(number)
        file = self.folder / f"{link}.conf"
        file.touch(0o600)
        file.write_text(text)
        (addresses,) = re.findall(r"^Address = (.*)$", text, re.MULTILINE)
        within(name, "wireguard-go", link)
        stripped = within(name, "wg-quick", "strip", str(file))
        within(name, "wg", "setconf", link, "/proc/self/fd/0", stdin=stripped)
        ip(f"-n {name} link set {link} mtu 1420 up")
        for address in addresses.split(","):
            ip(f"-n {name} address add {address} dev {link}" + (" nodad" if ":" in address else ""))
        # Used by who asks for it alone.
        ip(f"-n {name} address add 2001:db8:77::bad/128 dev {link} nodad valid_lft forever preferred_lft 0")
        ip(f"-n {name} route add default dev {link} src 10.77.0.{number}")
        ip(f"-n {name} -6 route add default dev {link} src {CLIENTS[number]}")

    def config(self, number: int) -> str:
        place: dict[str, Any] = {"node": "n", "public_key": self.server_public, "name": "s1"}
        own = product.Server(
            id=1,
            interface=LINK,
            private_key=product.Secret(),
            listen_port=PORT,
            address=IPv4Interface("10.77.0.1/24"),
            address_ipv6=NETWORK,
            **place,
        )
        account = product.Account(
            id=number,
            name=f"a{number}",
            username="u",
            password=product.Secret(),
            server="s1",
            node="n",
            address=IPv4Interface(f"10.77.0.{number}/24").ip,
            private_key=product.Secret(self.keys[number][0]),
            public_key=self.keys[number][1],
            mark=100,
            download=0,
            upload=0,
            enabled=True,
            address_ipv6=IPv6Address(CLIENTS[number]),
        )
        return config_text(account, own, f"192.0.2.{number * 4 + 1}")

    def pings(self, number: int, target: str) -> bool:
        with enter(self.clients[number]) as client:
            return bool(client(pings, target))

    def counted(self, number: int) -> tuple[int, int]:
        """Upload and download of the account, as a gateway would be told."""
        totals = [total.used for total in self.store.totals(0, [number])[1]]
        return sum(used.upload for used in totals), sum(used.download for used in totals)


def pings(target: str) -> bool:
    """Is an echo request answered within a second?"""
    is_ipv6 = ":" in target
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if is_ipv6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    request = struct.pack("!BBHHH", 128 if is_ipv6 else 8, 0, 0, os.getpid() & 0xFFFF, 1)
    if not is_ipv6:
        total = sum(struct.unpack("!4H", request))
        request = request[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + request[4:]
    with socket.socket(family, socket.SOCK_RAW, protocol) as door:
        door.settimeout(1)
        try:
            door.sendto(request, (target, 0))
            give_up = time.monotonic() + 1
            while time.monotonic() < give_up:
                data, sender = door.recvfrom(200)
                if sender[0] == target and data[0 if is_ipv6 else 20] == (129 if is_ipv6 else 0):
                    return True
        except OSError:
            pass
    return False


def ip(line: str) -> None:
    run("ip", *line.split())


@pytest.fixture(params=["nftables", "iptables"])
def stage(request: pytest.FixtureRequest, make_namespace: Callable[[], str], tmp_path: Path) -> Iterator[Stage]:
    if reason := missing("userspace"):
        pytest.skip(reason)
    made = Stage(make_namespace, request.param, tmp_path / "agent.db")
    try:
        yield made
    finally:
        made.store.close()
        for name in (made.home, made.far, *made.clients.values()):
            end_all(name)


def send(family: int, source: str, target: str, count: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as door:
        door.bind((source, 0))
        for _ in range(count):
            door.sendto(bytes(SIZE), (target, 9))
            time.sleep(0.001)


def test_two_families_are_one_account(stage: Stage) -> None:
    with enter(stage.home) as here, enter(stage.clients[2]) as client, enter(stage.far) as far:
        desired = stage.desired(stage.account(2), stage.account(3))
        stage.make(desired, here)
        stage.connect(2)
        eventually(lambda: stage.pings(2, OUTSIDE), 20)
        assert eventually(lambda: stage.pings(2, OUTSIDE_IPV6), 20), (
            "the network is routed to the node: nothing is translated"
        )
        here(stage.writer.sample, desired)
        before = stage.counted(2)
        client(send, socket.AF_INET, "10.77.0.2", OUTSIDE, 50)
        client(send, socket.AF_INET6, CLIENTS[2], OUTSIDE_IPV6, 70)
        expected = 50 * (SIZE + HEADERS[socket.AF_INET]) + 70 * (SIZE + HEADERS[socket.AF_INET6])

        def uploaded() -> int:
            here(stage.writer.sample, desired)
            return stage.counted(2)[0] - before[0]

        # Port 9 is closed there: each datagram may be answered by an error, which is download.
        assert eventually(lambda: uploaded() >= expected and uploaded(), 20) == expected

        # A source that is not the account's: WireGuard drops it.
        client(send, socket.AF_INET6, "2001:db8:77::bad", OUTSIDE_IPV6, 20)
        client(send, socket.AF_INET6, CLIENTS[2], OUTSIDE_IPV6, 1)
        more = expected + SIZE + HEADERS[socket.AF_INET6]
        assert eventually(lambda: uploaded() >= more and uploaded(), 20) == more

        # Neither the box, but for its own address, nor another account, nor another network.
        assert stage.pings(2, "2001:db8:77::1")
        assert not stage.pings(2, UPLINK_IPV6)
        stage.connect(3)
        assert eventually(lambda: stage.pings(3, OUTSIDE_IPV6), 20)
        assert not stage.pings(2, CLIENTS[3])
        assert not stage.pings(2, "fd00:1::1")
        assert not far(pings, CLIENTS[2]), "nobody begins a connection from outside"

        live = here(LiveReads(stage.kernel, Usage(stage.store, time.time)).read_account, desired, 2, Look.MARKS)
        assert live.counters.upload_bytes > 50 * SIZE and live.counters_ipv6.upload_bytes > 70 * SIZE

        # Nothing is left to do, and nothing is done twice.
        report = here(stage.writer.full, desired)
        assert not report.changes, report.changes


def test_flushed_rules_come_back_and_what_is_off_is_gone(stage: Stage) -> None:
    with enter(stage.home) as here:
        here(setting, "up0", "accept_ra", "1")
        desired = stage.desired(stage.account(2, download=RATE, upload=RATE), stage.account(3))
        stage.make(desired, here)
        assert here(read_setting, "up0", "accept_ra") == "2", "or the box would lose its own default route"
        stage.connect(2)
        assert eventually(lambda: stage.pings(2, OUTSIDE_IPV6), 20)
        within(stage.home, "nft", "flush", "ruleset")
        stage.make(desired, here)
        assert here(ends_with_drop), "forwarding is on by us, so nothing but our links' passes"
        assert stage.pings(2, OUTSIDE_IPV6) and stage.pings(2, OUTSIDE)
        ip(f"-n {stage.home} -6 address flush dev {LINK} scope global")
        stage.make(desired, here)
        assert stage.pings(2, OUTSIDE_IPV6)

        own = [IPv6Address(CLIENTS[2])]
        assert here(conntrack.forget, own) >= 1, "Linux remembers whom an answer is for"
        assert stage.pings(2, OUTSIDE_IPV6)

        # Disabled: both families at once, the connections too.
        off = stage.desired(stage.account(2, enabled=False), stage.account(3))
        stage.make(off, here)
        assert here(conntrack.forget, own) == 0, "the pass has done it"
        assert not stage.pings(2, OUTSIDE_IPV6) and not stage.pings(2, OUTSIDE)
        assert CLIENTS[2] not in within(stage.home, "wg", "show", LINK, "allowed-ips")
        stage.make(desired, here)
        assert eventually(lambda: stage.pings(2, OUTSIDE_IPV6), 30)

        # Without IPv6 nothing of it is left.
        plain = (replace(stage.account(n), address_ipv6=None) for n in CLIENTS)
        stage.make(stage.desired(*plain, address_ipv6=None), here)
        assert not here(nft.has_table, "wirelane", "ip6")
        assert not here(nft.has_table, "wirelane_forwarding", "ip6")
        assert not here(nft.has_table, "wirelane_connections", "ip6")
        assert here(read_setting, "all", "forwarding") == "0"
        assert not stage.pings(2, OUTSIDE_IPV6)
        assert eventually(lambda: stage.pings(2, OUTSIDE), 20)


def test_a_switch_of_ours_does_not_outlive_rules_that_somebody_flushed(stage: Stage) -> None:
    with enter(stage.home) as here:
        stage.make(stage.desired(stage.account(2)), here)
        assert here(read_setting, "all", "forwarding") == "1"
        within(stage.home, "nft", "flush", "ruleset")
        stage.make(stage.desired(replace(stage.account(2), address_ipv6=None), address_ipv6=None), here)
        assert here(read_setting, "all", "forwarding") == "0"


def test_a_box_without_a_way_out_for_ipv6_says_so(stage: Stage) -> None:
    with enter(stage.home) as here:
        wanted = stage.desired(stage.account(2))
        assert not here(stage.writer.full, wanted).warnings
        ip(f"-n {stage.home} -6 route del default")
        (warning,) = here(stage.writer.full, wanted).warnings
        assert "up0 has no default route of IPv6" in warning


def test_what_somebody_else_switched_on_stays_and_passes(stage: Stage) -> None:
    with enter(stage.home) as here:
        here(setting, "all", "forwarding", "1")
        stage.make(stage.desired(stage.account(2)), here)
        assert not here(ends_with_drop)
        stage.make(stage.desired(address_ipv6=None), here)
        assert here(read_setting, "all", "forwarding") == "1"


def test_a_server_whose_ipv6_cannot_be_let_through_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise KernelError("cannot set net.ipv6.conf.all.forwarding=1: Read-only file system")

    with enter(stage.home) as here, monkeypatch.context() as patched:
        patched.setattr(ipv6_forward, "switch_on", refuse)
        failures = here(stage.writer.full, stage.desired(stage.account(2))).failures
        assert any("forwarding of IPv6: cannot set" in one.reason for one in failures.values())
        patched.undo()
        stage.make(stage.desired(stage.account(2)), here)
        assert here(read_setting, "all", "forwarding") == "1"


def setting(device: str, name: str, value: str) -> None:
    Path(f"/proc/sys/net/ipv6/conf/{device}/{name}").write_text(value)


def read_setting(device: str, name: str) -> str:
    return Path(f"/proc/sys/net/ipv6/conf/{device}/{name}").read_text().strip()


def ends_with_drop() -> bool:
    listed = json.loads(run("nft", "-j", "list", "chain", "ip6", "wirelane_forwarding", "forward"))["nftables"]
    rules = [one["rule"]["expr"] for one in listed if "rule" in one]
    return bool(rules[-1] == [{"drop": None}])


def test_one_limit_holds_for_both_families_together(stage: Stage) -> None:
    with enter(stage.home) as here:
        desired = stage.desired(stage.account(2, download=RATE, upload=RATE))
        stage.make(desired, here)
        stage.connect(2)
        assert eventually(lambda: stage.pings(2, OUTSIDE_IPV6) and stage.pings(2, OUTSIDE), 30)
        far = ["ip", "netns", "exec", stage.far, "iperf3", "-s", "-1", "-p"]
        near = ["ip", "netns", "exec", stage.clients[2], "iperf3", "-J", "-R", "-t", "6", "-O", "1", "-c"]
        servers = [subprocess.Popen([*far, str(port)], stdout=subprocess.DEVNULL) for port in (5201, 5202)]
        try:
            time.sleep(0.5)
            here(stage.writer.sample, desired)
            before = stage.counted(2)[1]
            began = time.monotonic()
            runs = [
                subprocess.Popen([*near, target, "-p", port], stdout=subprocess.PIPE)
                for target, port in ((OUTSIDE, "5201"), (OUTSIDE_IPV6, "5202"))
            ]
            answers = [json.loads(one.communicate(timeout=60)[0])["end"]["sum_received"] for one in runs]
            seconds = time.monotonic() - began
        finally:
            for one in servers:
                one.kill()
                one.wait()
        rates = [answer["bits_per_second"] / 1e6 for answer in answers]
        assert min(rates) > 0.5, f"both get through: {rates}"
        assert 0.85 * RATE < sum(rates) < 1.03 * RATE, rates
        here(stage.writer.sample, desired)
        used = stage.counted(2)[1] - before
        assert used >= sum(answer["bytes"] for answer in answers), "both are in the sum"
        # What the class then dropped was counted before it, a few packets for each window of TCP.
        assert used * 8 / 1e6 < 1.15 * RATE * (seconds + 0.5)


def test_nat66_hides_the_network_behind_the_node(stage: Stage) -> None:
    with enter(stage.home) as here, enter(stage.clients[2]) as client:
        ip(f"-n {stage.far} route del {NETWORK.network}")
        stage.make(stage.desired(stage.account(2), nat_ipv6=True), here)
        stage.connect(2)
        assert eventually(lambda: stage.pings(2, OUTSIDE_IPV6), 20)
        with enter(stage.far) as far_thread:
            heard = far_thread(_listening)
            with heard:
                client(_say)
                assert heard.recvfrom(100)[1][0] == UPLINK_IPV6


def _listening() -> socket.socket:
    door = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    door.bind((OUTSIDE_IPV6, 777))
    door.settimeout(10)
    return door


def _say() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as door:
        door.bind((CLIENTS[2], 0))
        door.sendto(b"hello", (OUTSIDE_IPV6, 777))


def test_who_has_no_ipv6_pays_nothing(stage: Stage) -> None:
    with enter(stage.home) as here:
        plain = replace(stage.account(2), address_ipv6=None)
        stage.make(stage.desired(plain, address_ipv6=None), here)
        tables = json.loads(within(stage.home, "nft", "-j", "list", "tables"))["nftables"]
        assert not [one for one in tables if one.get("table", {}).get("family") == "ip6"]
        names = Path("/proc/net/ip6_tables_names")
        assert not here(lambda: Path("/proc/thread-self/net/ip6_tables_names").read_text()) if names.exists() else True
        assert here(read_setting, "all", "forwarding") == "0"


def test_a_network_of_the_host_is_not_taken(stage: Stage) -> None:
    with enter(stage.home) as here:
        wanted = stage.desired(address_ipv6=IPv6Interface("2001:db8:1::77/64"))
        (failure,) = here(stage.writer.full, wanted).failures.values()
        assert "overlaps 2001:db8:1::/64, which the host has" in failure.reason
        assert "2001:db8:1::77" not in within(stage.home, "ip", "-6", "address")


@pytest.mark.parametrize("target", [OUTSIDE, OUTSIDE_IPV6])
def test_segments_fit_the_tunnel_whoever_thinks_otherwise(stage: Stage, target: str) -> None:
    with enter(stage.home) as here, enter(stage.far) as far, enter(stage.clients[2]) as client:
        stage.make(stage.desired(stage.account(2)), here)
        stage.connect(2)
        assert eventually(lambda: stage.pings(2, target), 20)
        (link,) = (name for name in client(os.listdir, "/proc/sys/net/ipv4/conf") if name.startswith("wlt"))
        ip(f"-n {stage.clients[2]} link set {link} mtu 1500")
        with far(socket.create_server, (target, 80), family=_family(target)) as door:
            door.settimeout(10)
            with client(socket.create_connection, (target, 80), 10):
                accepted, _ = door.accept()
                with accepted:
                    most = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        # Of 1420 bytes without the two headers; options of the connection may have taken some more.
        assert 1420 - _headers(target) - 40 < most <= 1420 - _headers(target)


def _family(target: str) -> int:
    return socket.AF_INET6 if ":" in target else socket.AF_INET


def _headers(target: str) -> int:
    return (40 if ":" in target else 20) + 20


def test_accounts_reach_one_another_where_their_server_lets_them(stage: Stage) -> None:
    with enter(stage.home) as here:
        stage.make(stage.desired(stage.account(2), stage.account(3), internal_traffic=True), here)
        for number in CLIENTS:
            stage.connect(number)
            assert eventually(lambda who=number: stage.pings(who, OUTSIDE_IPV6), 20)  # type: ignore[misc]
        assert eventually(lambda: stage.pings(2, CLIENTS[3]), 20)


def test_the_rules_of_both_families_are_shown(stage: Stage) -> None:
    with enter(stage.home) as here:
        desired = stage.desired(stage.account(2), nat_ipv6=True)
        stage.make(desired, here)
        found = here(LiveReads(stage.kernel, Usage(stage.store, time.time)).read_server, desired, "s1").rules
        second = "2001:db8:77::/64"
        assert [(rule.source, rule.destination, rule.target) for rule in found.nat] == [
            ("10.77.0.0/24", "0.0.0.0/0", "MASQUERADE"),
            (second, "::/0", "MASQUERADE"),
        ]
        shown = [(rule.source, rule.destination, rule.target) for rule in found.forward if ":" in rule.source]
        assert shown == [
            (f"!{second}", "::/0", "DROP"),
            (second, "internet", "ACCEPT"),
            ("::/0", second, "ACCEPT"),
            (second, second, "DROP"),
            (second, "::/0", "DROP"),
            ("::/0", second, "DROP"),
        ]
        assert ("10.77.0.0/24", "internet", "ACCEPT") in [(r.source, r.destination, r.target) for r in found.forward]
        network = desired.servers["s1"].address.network
        assert all(":" not in rule.source for rule in here(stage.kernel.server_rules, LINK, network, None).forward)
