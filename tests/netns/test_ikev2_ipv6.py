"""Both families in one session of IKEv2, with real programs and packets: what test_ipv6.py shows of WireGuard.

The agent's own writer and doors in a router's namespace; clients that ask for both families, as phones do, and one
that asks for IPv4 alone. With ESP in charon, and in the kernel where it can (tests/system).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

import pytest

from agent.kernel.ikev2 import Esp, keep_routes, routes
from agent.kernel.ikev2 import missing as missing_ikev2
from agent.kernel.ikev2.charon import Charon
from agent.kernel.ikev2.esp import lacking
from agent.kernel.ikev2.files import Paths
from agent.kernel.ikev2.programs import remembered
from agent.kernel.linux import LinuxKernel, Mode
from agent.kernel.nftables import nft
from agent.model import IKEV2_DEVICE, Account, Ikev2, Server
from agent.objects import Diff, Responder
from agent.parts import GATE, RESPONDER
from agent.usage import Usage
from agent.writer import Writer
from tests.fakes.state import login
from tests.netns.conftest import enter
from tests.netns.esp import Session, udp_ipv6
from tests.netns.ikev2_box import both_client, client, credentials, is_in
from tests.netns.test_ipv6 import (
    CLIENTS,
    HEADERS,
    NETWORK,
    OUTSIDE,
    OUTSIDE_IPV6,
    RATE,
    SIZE,
    UPLINK_IPV6,
    Stage,
    ip,
    pings,
    read_setting,
    send,
    setting,
)
from tests.netns.tunnels import end_all, eventually, missing, within

pytestmark = pytest.mark.skipif(bool(missing_ikev2()), reason=missing_ikev2() or "IKEv2 is here")
MODE: Mode = "userspace" if missing("kernel") else "kernel"  # of WireGuard
LOGIN_SECONDS = 60  # a machine under emulation is 20 times slower
PLUGINS: dict[Esp, str] = {"userspace": "kernel-libipsec", "kernel": ""}  # of clients
MTUS: dict[Esp, int] = {"userspace": 1400, "kernel": 1360}
RESOLVERS = tuple(map(IPv4Address, ("10.77.0.1", "9.9.9.9"))), tuple(map(IPv6Address, ("2620:fe::fe", "2620:fe::9")))


class Ikev2Stage(Stage):
    def __init__(self, make: Callable[[], str], backend: str, path: Path, esp: Esp, shown: Ikev2) -> None:
        super().__init__(make, backend, path)
        self.esp, self.shown, self.runtime = esp, shown, path.parent / "run"
        self.kernel = LinuxKernel(MODE, "up0", backend, connections=1000, runtime=self.runtime, esp=esp)
        self.writer = Writer(self.kernel, Usage(self.store, time.time))
        self.calls = {number: ExitStack() for number in CLIENTS}
        for number, name in self.clients.items():
            ip(f"-n {name} route add default via {self.outer(number)} metric 9")

    @staticmethod
    def outer(number: int) -> str:
        return f"192.0.2.{number * 4 + 1}"

    def desired(self, *accounts: Account, **of_server: Any) -> Any:
        return super().desired(*accounts, **{"ikev2": self.shown, **of_server})

    def account(self, number: int, **changes: Any) -> Account:
        return super().account(number, **{"login": login(number), **changes})

    def dial(self, number: int, plain: bool = False) -> Path:
        """In the place of its last call. `plain`: by `charon-cmd`, which asks for IPv4 alone. Returns what it says when
        it is in."""
        self.calls[number].close()
        folder = self.folder / f"client-{time.monotonic_ns()}"
        words = self.clients[number], folder, f"user_{number}", "secret", self.shown.authority, self.outer(number)
        begin = client if plain else both_client
        says = self.calls[number].enter_context(begin(*words, esp=PLUGINS[self.esp]))
        eventually(lambda: is_in(says) and "CHILD_SA" in says.read_text(), LOGIN_SECONDS)
        return says

    def hang_up(self) -> None:
        for stack in self.calls.values():
            stack.close()

    def who(self, here: Callable[..., Any]) -> list[str]:
        return [one.username for one in here(self.kernel.sessions)]

    def routes(self) -> list[str]:
        """To clients of IKEv2."""
        listed = (json.loads(within(self.home, "ip", "-j", family, "route")) for family in ("-4", "-6"))
        found = [one["dst"] for family in listed for one in family if one.get("dev") == IKEV2_DEVICE]
        return sorted(dst for dst in found if not dst.startswith("fe80"))

    def charon(self) -> int:
        return remembered(self.runtime / "running.json")["charon"].number

    def reaches(self, number: int, *targets: str) -> None:
        for target in targets:
            assert eventually(lambda there=target: self.pings(number, there), 20), target  # type: ignore[misc]


BOTH = ["10.77.0.2", CLIENTS[2]]


@pytest.fixture(scope="module")
def shown() -> Ikev2:
    return replace(credentials(), dns=(*RESOLVERS[0], *RESOLVERS[1]))


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "nftables")


@pytest.fixture(params=["userspace", "kernel"])
def stage(
    request: pytest.FixtureRequest, make_namespace: Callable[[], str], tmp_path: Path, shown: Ikev2, backend: str
) -> Iterator[Ikev2Stage]:
    if reason := missing(MODE):
        pytest.skip(reason)
    made, stop = Ikev2Stage(make_namespace, backend, tmp_path / "agent.db", request.param, shown), threading.Event()
    with enter(made.home) as here, enter(made.home) as keeps:
        if request.param == "kernel" and (reason := here(lacking)):
            pytest.skip(reason)
        keeper = threading.Thread(target=lambda: keeps(keep_routes, made.runtime, stop))
        keeper.start()
        try:
            yield made
        finally:
            made.hang_up()
            stop.set()
            keeper.join(10)
            here(made.kernel.door(RESPONDER).apply, Diff(remove={IKEV2_DEVICE: Responder(IKEV2_DEVICE)}))
            made.store.close()
            for name in (made.home, made.far, *made.clients.values()):
                end_all(name)


@pytest.mark.parametrize("backend", ["nftables", "iptables"], indirect=True)
def test_two_families_are_one_account(stage: Ikev2Stage) -> None:
    with enter(stage.home) as here, enter(stage.clients[2]) as there:
        desired = stage.desired(stage.account(2), stage.account(3))
        stage.make(desired, here)
        says = stage.dial(2)
        stage.reaches(2, OUTSIDE, OUTSIDE_IPV6, "2001:db8:77::1")
        eventually(lambda: stage.routes() == sorted(BOTH), 10)
        given = (says.parent / "given").read_text().splitlines()
        told = {line.partition("=")[2] for line in given if line.startswith("PLUTO_DNS")}
        assert told == {str(one) for family in RESOLVERS for one in family}

        here(stage.writer.sample, desired)
        before = stage.counted(2)
        there(send, socket.AF_INET, "10.77.0.2", OUTSIDE, 50)
        there(send, socket.AF_INET6, CLIENTS[2], OUTSIDE_IPV6, 70)
        expected = 50 * (SIZE + HEADERS[socket.AF_INET]) + 70 * (SIZE + HEADERS[socket.AF_INET6])

        def uploaded() -> int:
            here(stage.writer.sample, desired)
            return stage.counted(2)[0] - before[0]

        assert eventually(lambda: uploaded() >= expected and uploaded(), 20) == expected
        report = here(stage.writer.full, desired)
        assert not report.changes, "nothing is left to do, and nothing is done twice"
        assert stage.who(here) == ["user_2"]


def test_one_limit_holds_for_both_families_together(stage: Ikev2Stage) -> None:
    with enter(stage.home) as here:
        stage.make(stage.desired(stage.account(2, download=RATE, upload=RATE)), here)
        stage.dial(2)
        stage.reaches(2, OUTSIDE, OUTSIDE_IPV6)
        rates = downloads(stage)
        assert min(rates) > 0.5, f"both get through: {rates}"
        assert 0.85 * RATE < sum(rates) < 1.03 * RATE, rates


def downloads(stage: Stage) -> list[float]:
    """Of both families at the same time, Mbit/s."""
    far = ["ip", "netns", "exec", stage.far, "iperf3", "-s", "-1", "-p"]
    near = ["ip", "netns", "exec", stage.clients[2], "iperf3", "-J", "-R", "-t", "6", "-O", "1", "-c"]
    servers = [subprocess.Popen([*far, str(port)], stdout=subprocess.DEVNULL) for port in (5201, 5202)]
    try:
        time.sleep(0.5)
        runs = [
            subprocess.Popen([*near, target, "-p", port], stdout=subprocess.PIPE)
            for target, port in ((OUTSIDE, "5201"), (OUTSIDE_IPV6, "5202"))
        ]
        return [
            json.loads(one.communicate(timeout=60)[0])["end"]["sum_received"]["bits_per_second"] / 1e6 for one in runs
        ]
    finally:
        for one in servers:
            one.kill()
            one.wait()


def test_nobody_has_another_ones_address(stage: Ikev2Stage) -> None:
    """A client that is not honest: any source, in a session that is its own."""
    with enter(stage.home) as here, enter(stage.clients[2]) as there, enter(stage.far) as far:
        stage.make(stage.desired(stage.account(2), stage.account(3), internal_traffic=True), here)
        says = stage.dial(2)
        stage.dial(3)
        for number in CLIENTS:
            stage.reaches(number, OUTSIDE_IPV6)
        session = Session.of(says, encapsulated=stage.esp == "userspace")
        with (
            far(listening, OUTSIDE_IPV6) as outside,
            enter(stage.clients[3]) as other,
            other(listening, CLIENTS[3]) as inside,
        ):

            def arrives(door: socket.socket, source: str, target: str) -> bool:
                packet = udp_ipv6(source, target, 777, source.encode())
                there(session.send, packet, "192.0.2.10", stage.outer(2))
                try:
                    return door.recv(100) == source.encode()
                except TimeoutError:
                    return False

            assert arrives(outside, CLIENTS[2], OUTSIDE_IPV6) and arrives(inside, CLIENTS[2], CLIENTS[3])
            for source in (CLIENTS[3], "2001:db8:77::bad", "2001:db8:99::1", UPLINK_IPV6, "2001:db8:77::1", "fe80::1"):
                assert not arrives(outside, source, OUTSIDE_IPV6), source
                assert not arrives(inside, source, CLIENTS[3]), source
            assert arrives(outside, CLIENTS[2], OUTSIDE_IPV6) and arrives(inside, CLIENTS[2], CLIENTS[3])


def listening(address: str) -> socket.socket:
    door = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    door.bind((address, 777))
    door.settimeout(0.7)
    return door


def test_accounts_reach_what_they_may_by_either_tunnel(stage: Ikev2Stage) -> None:
    if reason := missing("userspace"):  # of the client
        pytest.skip(reason)
    with enter(stage.home) as here, enter(stage.far) as far:
        both = stage.account(2), stage.account(3)
        stage.make(stage.desired(*both), here)
        stage.dial(2)
        stage.connect(3)
        stage.reaches(2, OUTSIDE_IPV6)
        stage.reaches(3, OUTSIDE_IPV6)
        closed = (CLIENTS[3], UPLINK_IPV6, "fd00:1::1")
        assert not [target for target in closed if stage.pings(2, target)] and not stage.pings(3, CLIENTS[2])
        assert not far(pings, CLIENTS[2]), "nobody begins a connection from outside"

        stage.make(stage.desired(*both, internal_traffic=True), here)
        stage.reaches(2, CLIENTS[3])
        stage.reaches(3, CLIENTS[2])
        stage.dial(3)
        stage.reaches(2, CLIENTS[3])
        assert not stage.pings(2, UPLINK_IPV6)


def test_nat66_hides_the_network_behind_the_node(stage: Ikev2Stage) -> None:
    with enter(stage.home) as here, enter(stage.clients[2]) as there, enter(stage.far) as far:
        ip(f"-n {stage.far} route del {NETWORK.network}")
        stage.make(stage.desired(stage.account(2), nat_ipv6=True), here)
        stage.dial(2)
        stage.reaches(2, OUTSIDE_IPV6)
        with far(listening, OUTSIDE_IPV6) as heard:
            there(say, CLIENTS[2], OUTSIDE_IPV6)
            assert heard.recvfrom(100)[1][0] == UPLINK_IPV6


def say(source: str, target: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as door:
        door.bind((source, 0))
        door.sendto(b"hello", (target, 777))


@pytest.mark.parametrize("target", [OUTSIDE, OUTSIDE_IPV6])
def test_segments_fit_the_tunnel(stage: Ikev2Stage, target: str) -> None:
    family, headers = (socket.AF_INET6, 60) if ":" in target else (socket.AF_INET, 40)
    with enter(stage.home) as here, enter(stage.far) as far, enter(stage.clients[2]) as there:
        stage.make(stage.desired(stage.account(2)), here)
        stage.dial(2)
        stage.reaches(2, target)
        if stage.esp == "userspace":
            ip(f"-n {stage.clients[2]} link set ipsec0 mtu 1500")
        with far(socket.create_server, (target, 80), family=family) as door:
            door.settimeout(10)
            with there(socket.create_connection, (target, 80), 10):
                accepted, _ = door.accept()
                with accepted:
                    most = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        assert MTUS[stage.esp] - headers - 40 < most <= MTUS[stage.esp] - headers


def test_who_asks_for_one_family_gets_that(stage: Ikev2Stage) -> None:
    with enter(stage.home) as here:
        stage.make(stage.desired(stage.account(2), stage.account(3)), here)
        stage.dial(2, plain=True)
        stage.reaches(2, OUTSIDE)
        eventually(lambda: stage.routes() == ["10.77.0.2"], 10)
        assert stage.who(here) == ["user_2"]


def test_who_asks_for_both_gets_in_where_there_is_one(stage: Ikev2Stage) -> None:
    """Of a server without IPv6: alone on its node, where nothing of it is there, and beside one that has it."""
    plain = replace(stage.account(2), address_ipv6=None)
    with enter(stage.home) as here:
        desired = stage.desired(plain, address_ipv6=None)
        stage.make(desired, here)
        stage.dial(2)
        stage.reaches(2, OUTSIDE)
        eventually(lambda: stage.routes() == ["10.77.0.2"], 10)
        assert here(read_setting, IKEV2_DEVICE, "disable_ipv6") == "1"
        assert not [name for name in ("wirelane", "wirelane_forwarding") if here(nft.has_table, name, "ip6")]
        assert not here(stage.kernel.door(GATE).read, None)[IKEV2_DEVICE].ipv6
        charon = stage.charon()

        other = second_server(desired.servers["s1"])
        stage.make(replace(desired, servers=desired.servers | {other.name: other}), here)
        assert here(stage.kernel.door(GATE).read, None)[IKEV2_DEVICE].ipv6
        assert stage.who(here) == ["user_2"] and stage.charon() == charon, "who is in stays"
        stage.dial(2)
        stage.reaches(2, OUTSIDE)
        eventually(lambda: stage.routes() == ["10.77.0.2"], 10)


def second_server(one: Server) -> Server:
    other, ipv6 = IPv4Interface("10.88.0.1/24"), IPv6Interface("2001:db8:88::1/64")
    return replace(one, name="s2", interface=f"{one.interface}9", listen_port=51999, address=other, address_ipv6=ipv6)


CHANGES: dict[str, dict[str, Any]] = {
    "disabled": {"enabled": False},
    "another address": {"address_ipv6": IPv6Address("2001:db8:77::22")},
    "none": {"address_ipv6": None},
}


@pytest.mark.parametrize("change", CHANGES)
def test_who_loses_its_address_is_out_when_the_pass_is_over(stage: Ikev2Stage, change: str) -> None:
    with enter(stage.home) as here:
        stage.make(stage.desired(stage.account(2), stage.account(3)), here)
        stage.dial(2)
        stage.dial(3)
        stage.reaches(2, OUTSIDE_IPV6)
        stage.reaches(3, OUTSIDE_IPV6)
        stage.make(stage.desired(stage.account(2, **CHANGES[change]), stage.account(3)), here)
        assert stage.who(here) == ["user_3"]
        assert not stage.pings(2, OUTSIDE_IPV6) and stage.pings(3, OUTSIDE_IPV6)
        eventually(lambda: stage.routes() == ["10.77.0.3", CLIENTS[3]], 10)
        if change == "another address":
            stage.dial(2)
            stage.reaches(2, OUTSIDE_IPV6)
            eventually(lambda: "2001:db8:77::22" in stage.routes(), 10)


def test_a_server_that_has_no_ipv6_any_more_leaves_nothing_of_it(stage: Ikev2Stage) -> None:
    with enter(stage.home) as here:
        stage.make(stage.desired(stage.account(2)), here)
        stage.dial(2)
        stage.reaches(2, OUTSIDE_IPV6)
        charon = stage.charon()
        stage.make(stage.desired(replace(stage.account(2), address_ipv6=None), address_ipv6=None), here)
        assert stage.who(here) == [] and stage.charon() == charon
        assert not here(nft.has_table, "wirelane_forwarding", "ip6")
        assert here(read_setting, IKEV2_DEVICE, "disable_ipv6") == "1"
        stage.dial(2)
        stage.reaches(2, OUTSIDE)
        assert not stage.pings(2, OUTSIDE_IPV6)


def test_what_is_changed_on_the_device_is_put_right_under_who_is_in(
    stage: Ikev2Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MISTRUST_SECONDS", 1.0)
    with enter(stage.home) as here:
        desired = stage.desired(stage.account(2))
        stage.make(desired, here)
        stage.dial(2)
        stage.reaches(2, OUTSIDE, OUTSIDE_IPV6)
        charon = stage.charon()
        here(setting, IKEV2_DEVICE, "disable_ipv6", "1")
        ip(f"-n {stage.home} link set {IKEV2_DEVICE} mtu 1200")  # too small for IPv6: nothing of it is left there
        here(lambda: Path(f"/proc/sys/net/ipv4/conf/{IKEV2_DEVICE}/forwarding").write_text("0"))
        report = here(stage.writer.full, desired)
        assert [(one.part, one.verb) for one in report.changes] == [("responder", "change")] and not report.failures
        assert f"mtu {MTUS[stage.esp]} " in within(stage.home, "ip", "link", "show", IKEV2_DEVICE)
        stage.reaches(2, OUTSIDE, OUTSIDE_IPV6)
        eventually(lambda: stage.routes() == sorted(BOTH), 10)
        ip(f"-n {stage.home} route del 10.77.0.2/32")
        ip(f"-n {stage.home} -6 route del {CLIENTS[2]}/128")
        eventually(lambda: stage.routes() == sorted(BOTH), 10)
        assert stage.who(here) == ["user_2"] and stage.charon() == charon
        assert not here(stage.writer.full, desired).changes


def test_a_charon_that_is_killed_comes_back_with_both(stage: Ikev2Stage) -> None:
    with enter(stage.home) as here:
        desired = stage.desired(stage.account(2))
        stage.make(desired, here)
        stage.dial(2)
        stage.reaches(2, OUTSIDE_IPV6)
        os.kill(stage.charon(), signal.SIGKILL)
        stage.hang_up()
        assert not stage.pings(2, OUTSIDE_IPV6)
        stage.make(desired, here)
        stage.dial(2)
        stage.reaches(2, OUTSIDE, OUTSIDE_IPV6)


def test_a_session_with_new_keys_is_still_known(stage: Ikev2Stage) -> None:
    with enter(stage.home) as here:
        stage.make(stage.desired(stage.account(2)), here)
        stage.dial(2)
        stage.reaches(2, OUTSIDE, OUTSIDE_IPV6)
        eventually(lambda: stage.routes() == sorted(BOTH), 10)
        charon = Charon(Paths(stage.runtime).control)
        (before,) = charon.sas()
        with charon.session() as session:
            session.rekey({"ike-id": before.number})
        eventually(lambda: [one.number for one in charon.sas()] != [before.number], LOGIN_SECONDS)
        stage.reaches(2, OUTSIDE, OUTSIDE_IPV6)
        eventually(lambda: stage.routes() == sorted(BOTH), 10)
        assert here(stage.kernel.disconnect, "user_2")
        eventually(lambda: stage.routes() == [], 10)
