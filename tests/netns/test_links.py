"""Links of real WireGuard in throw-away namespaces: made, changed in place, adopted, left alone.

What both implementations promise runs twice, in the kernel and in userspace.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from agent.diff import diff
from agent.errors import KernelError
from agent.kernel.host import interfaces
from agent.kernel.host.ports import udp_ports
from agent.kernel.host.watch import ANY, watch
from agent.kernel.tc.shaper import Qdiscs
from agent.kernel.wireguard import uapi
from agent.kernel.wireguard.door import PortBusy
from agent.kernel.wireguard.links import Links, choose_mode
from agent.kernel.wireguard.peers import Peers
from agent.model import Secret
from agent.objects import Diff, Link, Qdisc, Scope
from tests.netns import tunnels
from tests.netns.conftest import enter
from tests.netns.tunnels import STDIN, Client, Server, handshake, scope, shown, some_key, unique_name, within

pytestmark = pytest.mark.timeout(600)  # the kernel's one also runs under emulation

Tunnel = tuple[Server, Callable[[], Client]]


@pytest.fixture(params=["kernel", "userspace"])
def tunnel(request: pytest.FixtureRequest, make_namespace: Callable[[], str]) -> Iterator[Tunnel]:
    with tunnels.serving(make_namespace, request.param) as both:
        yield both


@pytest.fixture
def server(tunnel: Tunnel) -> Server:
    return tunnel[0]


@pytest.fixture
def process_server(make_namespace: Callable[[], str]) -> Iterator[Server]:
    """Userspace only: what is special about having a process."""
    with tunnels.serving(make_namespace, "userspace") as (server, _):
        yield server


def made(server: Server, **different: Any) -> Link:
    link = server.link(**different)
    assert server.run(Links(server.mode).apply, Diff(add={link.interface: link})) == {}
    return link


def found(server: Server) -> dict[str, Link]:
    links: dict[str, Link] = server.run(Links(server.mode).read, scope())
    return links


def applied(server: Server, *wanted: Link) -> dict[str, KernelError]:
    """One pass: read, compare, change. The errors."""
    errors: dict[str, KernelError] = server.run(
        Links(server.mode).apply, diff({link.interface: link for link in wanted}, found(server))
    )
    return errors


# -- made and removed ---------------------------------------------------------------------------------------------


def test_made_link_reads_back_equal_and_is_what_others_see(server: Server) -> None:
    link = made(server)
    assert found(server) == {link.interface: link}
    seen = shown(server.namespace, link.interface)
    assert seen["ifalias"] == f"wirelane:{link.interface}"
    assert (seen["mtu"], "UP" in seen["flags"]) == (1420, True)
    assert [(one["local"], one["prefixlen"]) for one in seen["addr_info"]] == [("10.77.0.1", 16)]
    assert "10.77.0.0/16" in within(server.namespace, "ip", "route", "show", "dev", link.interface)
    assert within(server.namespace, "wg", "show", link.interface, "private-key").strip() == link.private_key.reveal()
    assert within(server.namespace, "wg", "show", link.interface, "listen-port").strip() == "51820"
    assert 51820 in server.run(udp_ports)


def test_made_twice_is_made_once(server: Server) -> None:
    link = made(server)
    index = shown(server.namespace, link.interface)["ifindex"]
    assert server.run(Links(server.mode).apply, Diff(add={link.interface: link})) == {}
    assert shown(server.namespace, link.interface)["ifindex"] == index


def test_removed_link_is_gone_and_a_second_removal_is_no_error(server: Server) -> None:
    link = made(server)
    for _ in range(2):
        assert server.run(Links(server.mode).apply, Diff(remove={link.interface: link})) == {}
    assert found(server) == {}
    assert server.run(interfaces.read_interface, link.interface) is None
    assert 51820 not in server.run(udp_ports)


# -- changed in place ---------------------------------------------------------------------------------------------


def test_port_mtu_and_address_change_in_place_under_a_session(tunnel: Tunnel) -> None:
    server, new_client = tunnel
    link = made(server)
    client = new_client()
    assert server.run(Peers().apply, Diff(add=dict([client.peer(link)]))) == {}
    client.connect(link)
    tunnels.eventually(client.reaches)
    session = handshake(server.namespace, link.interface, client.public_key)
    before = shown(server.namespace, link.interface)["ifindex"], tunnels.wireguard_pids(server.namespace)

    changed = replace(link, mtu=1380, address=IPv4Interface("10.77.0.9/16"), listen_port=51999)
    assert applied(server, changed) == {}
    assert found(server) == {link.interface: changed}
    assert 51820 not in server.run(udp_ports)
    endpoint = f"{tunnels.SERVER_OUTER}:51999"
    server_key = within(client.namespace, "wg", "show", client.interface, "peers").strip()
    within(client.namespace, "wg", "set", client.interface, "peer", server_key, "endpoint", endpoint)
    assert client.reaches("10.77.0.9")
    assert handshake(server.namespace, link.interface, client.public_key) == session
    assert (shown(server.namespace, link.interface)["ifindex"], tunnels.wireguard_pids(server.namespace)) == before


def test_private_key_changes_in_place(server: Server) -> None:
    link = made(server)
    changed = replace(link, private_key=Secret(tunnels.new_keys()[0]))
    index = shown(server.namespace, link.interface)["ifindex"]
    assert applied(server, changed) == {}
    assert found(server) == {link.interface: changed}
    assert shown(server.namespace, link.interface)["ifindex"] == index


@pytest.mark.parametrize(
    "drift",
    [
        "ip link set {0} down",
        "ip link set {0} mtu 1300",
        "ip address add 10.78.0.1/16 dev {0}",
        "ip address add 10.77.0.7/16 dev {0}",
        "ip address del 10.77.0.1/16 dev {0}",
        "ip address replace 10.77.0.1/24 dev {0}",
        "wg set {0} listen-port 40000",
        "wg set {0} private-key /proc/self/fd/0",
    ],
)
def test_drift_is_seen_and_mended_in_place(server: Server, drift: str) -> None:
    link = made(server)
    index = shown(server.namespace, link.interface)["ifindex"]
    within(
        server.namespace, *drift.format(link.interface).split(), stdin=some_key(3)
    )  # read by the one that changes the key
    assert tunnels.eventually(lambda: found(server) != {link.interface: link})
    assert applied(server, link) == {}
    assert found(server) == {link.interface: link}
    assert shown(server.namespace, link.interface)["ifindex"] == index


def test_address_that_was_second_in_its_network_survives_the_removal_of_the_first(server: Server) -> None:
    link = made(server, address=IPv4Interface("10.77.0.2/16"))
    within(server.namespace, "ip", "address", "add", "10.77.0.3/16", "dev", link.interface)
    other = replace(link, address=IPv4Interface("10.77.0.3/16"))
    assert applied(server, other) == {}
    assert found(server) == {link.interface: other}


# -- ports --------------------------------------------------------------------------------------------------------


def test_busy_port_is_named_spoils_only_its_link_and_works_once_it_is_free(server: Server) -> None:
    held = server.run(tunnels.bound, "0.0.0.0", 40001)
    with held:
        good, bad = (
            server.link(listen_port=40000),
            server.link(listen_port=40001, address=IPv4Interface("10.78.0.1/16")),
        )
        errors = applied(server, good, bad)
        assert errors.keys() == {bad.interface}
        assert isinstance(errors[bad.interface], PortBusy)
        assert errors[bad.interface].retry
        assert "UDP port 40001" in str(errors[bad.interface])
        assert found(server)[good.interface] == good
        assert found(server)[bad.interface] != bad
    assert applied(server, good, bad) == {}
    assert found(server) == {good.interface: good, bad.interface: bad}


def test_link_whose_new_port_is_busy_keeps_its_old_one(server: Server) -> None:
    link = made(server)
    with server.run(tunnels.bound, "0.0.0.0", 40001):
        assert applied(server, replace(link, listen_port=40001)).keys() == {link.interface}
        assert found(server) == {link.interface: link}


def test_port_that_is_taken_behind_our_back_is_refused_by_wireguard_itself(server: Server) -> None:
    link = made(server)
    with server.run(tunnels.bound, "0.0.0.0", 40001):
        with pytest.raises(PortBusy, match="40001"):
            server.run(lambda: tunnels.door_of(server.mode).configure(link.interface, listen_port=40001))
        assert found(server)[link.interface].listen_port != 40001
    assert applied(server, link) == {}
    assert found(server) == {link.interface: link}


def test_two_links_exchange_their_ports(server: Server) -> None:
    one, two = made(server, listen_port=40000), made(server, listen_port=40001, address=IPv4Interface("10.78.0.1/16"))
    exchanged = replace(one, listen_port=40001), replace(two, listen_port=40000)
    assert applied(server, *exchanged) == {}
    assert found(server) == {link.interface: link for link in exchanged}


# -- whose it is --------------------------------------------------------------------------------------------------


def test_foreign_interface_of_the_wanted_name_is_refused_and_untouched(server: Server) -> None:
    link = server.link()
    within(server.namespace, "ip", "link", "add", link.interface, "type", "bridge")
    within(server.namespace, "ip", "address", "add", "10.1.1.1/24", "dev", link.interface)
    before = shown(server.namespace, link.interface)
    errors = applied(server, link)
    assert not errors[link.interface].retry
    assert f"interface {link.interface} exists and is not ours" in str(errors[link.interface])
    assert server.run(Links(server.mode).apply, Diff(remove={link.interface: link})) == {}
    assert found(server) == {}
    assert shown(server.namespace, link.interface) == before


def test_foreign_wireguard_that_is_configured_is_refused_and_untouched(server: Server) -> None:
    link = server.link()
    server.run(tunnels.door_of(server.mode).create, link.interface)
    key = tunnels.new_keys()[0]
    within(server.namespace, "wg", "set", link.interface, "private-key", STDIN, stdin=key)
    before = shown(server.namespace, link.interface), within(server.namespace, "wg", "showconf", link.interface)
    assert "not ours" in str(applied(server, link)[link.interface])
    after = shown(server.namespace, link.interface), within(server.namespace, "wg", "showconf", link.interface)
    assert after == before


def test_link_of_an_agent_that_was_killed_before_naming_it_is_adopted(server: Server) -> None:
    link = server.link()
    server.run(tunnels.door_of(server.mode).create, link.interface)
    index = shown(server.namespace, link.interface)["ifindex"]
    assert found(server) == {}
    assert applied(server, link) == {}
    assert found(server) == {link.interface: link}
    assert shown(server.namespace, link.interface)["ifindex"] == index


def test_link_of_ours_that_nobody_wants_is_found_and_removed(server: Server) -> None:
    link = made(server)
    assert server.run(Links(server.mode).read, scope()) == {link.interface: link}
    assert applied(server) == {}
    assert server.run(interfaces.read_interface, link.interface) is None


def test_link_made_in_the_other_mode_is_used_as_it_is(process_server: Server) -> None:
    link = made(process_server)
    before = tunnels.wireguard_pids(process_server.namespace)
    other = replace(process_server, mode="kernel")
    assert found(other) == {link.interface: link}
    assert applied(other, replace(link, mtu=1300)) == {}
    assert shown(process_server.namespace, link.interface)["mtu"] == 1300
    assert tunnels.wireguard_pids(process_server.namespace) == before


# -- the next agent -----------------------------------------------------------------------------------------------

AGENT = """
import pickle, sys
from agent.diff import diff
from agent.kernel.wireguard.links import Links
from agent.kernel.wireguard.peers import Peers
mode, scope, links, peers = pickle.load(sys.stdin.buffer)
todo = []
for part, wanted in ((Links(mode), links), (Peers(), peers)):
    change = diff(wanted, part.read(scope))
    errors = part.apply(change)
    assert not errors, errors
    todo.append(len(change))
print(*todo)
"""


def agent_pass(server: Server, link: Link, client: Client) -> str:
    """One pass by an agent in a process of its own, which ends afterwards; how many links and peers it changed."""
    wanted = pickle.dumps((server.mode, scope(link), {link.interface: link}, dict([client.peer(link)])))
    command = ["ip", "netns", "exec", server.namespace, sys.executable, "-c", AGENT]
    done = subprocess.run(command, input=wanted, capture_output=True, timeout=tunnels.DEADLINE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_next_agent_finds_everything_right_and_writes_nothing(tunnel: Tunnel) -> None:
    server, new_client = tunnel
    link, client = server.link(), new_client()
    assert agent_pass(server, link, client) == "1 1"
    client.connect(link)
    tunnels.eventually(client.reaches)

    def state() -> tuple[object, ...]:
        """Everything but the counters, which the client moves."""
        peers = within(server.namespace, "wg", "show", link.interface, "dump").splitlines()
        fields = [line.split("\t")[:5] for line in peers]
        return shown(server.namespace, link.interface), fields, tunnels.wireguard_pids(server.namespace)

    before = state()
    assert agent_pass(server, link, client) == "0 0"
    assert state() == before
    assert client.reaches()


# -- userspace: there is a process --------------------------------------------------------------------------------


def test_process_that_is_killed_is_started_again(process_server: Server) -> None:
    link = made(process_server)
    (pid,) = tunnels.wireguard_pids(process_server.namespace)
    os.kill(pid, signal.SIGKILL)  # leaves its socket file behind
    tunnels.eventually(lambda: process_server.run(interfaces.read_interface, link.interface) is None)
    assert Path(uapi.SOCKETS, f"{link.interface}.sock").exists()
    assert found(process_server) == {}
    assert applied(process_server, link) == {}
    assert found(process_server) == {link.interface: link}
    assert tunnels.wireguard_pids(process_server.namespace) != [pid]


def test_removed_link_takes_its_process_and_socket_with_it(process_server: Server) -> None:
    link = made(process_server)
    assert len(tunnels.wireguard_pids(process_server.namespace)) == 1
    assert process_server.run(Links("userspace").apply, Diff(remove={link.interface: link})) == {}
    assert tunnels.wireguard_pids(process_server.namespace) == []
    assert not Path(uapi.SOCKETS, f"{link.interface}.sock").exists()


def test_started_process_has_its_own_session_and_holds_none_of_our_files(process_server: Server) -> None:
    read_end, write_end = os.pipe()
    try:
        os.set_inheritable(write_end, True)
        made(process_server)
        (pid,) = tunnels.wireguard_pids(process_server.namespace)
        assert os.getsid(pid) != os.getsid(0)
        held = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
        assert not {one for one in held if one.startswith("pipe:")} & {os.readlink(f"/proc/self/fd/{write_end}")}
        assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_no_zombie_is_left_of_a_start(process_server: Server) -> None:
    made(process_server)
    # A child belongs to the thread that started it.
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children]
    assert "Z" not in states


def test_name_in_use_in_another_namespace_is_a_clear_error(
    process_server: Server, make_namespace: Callable[[], str]
) -> None:
    link = made(process_server)
    with tunnels.serving(make_namespace, "userspace") as (elsewhere, _):
        error = applied(elsewhere, link)[link.interface]
        assert link.interface in str(error)
        assert "in use" in str(error)
        assert elsewhere.run(interfaces.read_interface, link.interface) is None
    assert found(process_server) == {link.interface: link}


def test_program_that_is_not_there_is_named(process_server: Server) -> None:
    with pytest.raises(KernelError, match="there is no program no-such-wireguard"):
        process_server.run(uapi.UserspaceWireGuard("no-such-wireguard").create, unique_name())


# -- the host -----------------------------------------------------------------------------------------------------


def test_mode_auto_takes_the_kernel_where_it_can() -> None:
    kernel, userspace = tunnels.missing("kernel"), tunnels.missing("userspace")
    if kernel and userspace:
        pytest.skip(f"{kernel}; {userspace}")
    assert choose_mode("auto") == ("userspace" if kernel else "kernel")
    for mode, reason in (("kernel", kernel), ("userspace", userspace)):
        if not reason:
            assert choose_mode(mode) == mode
            continue
        with pytest.raises(KernelError) as refused:
            choose_mode(mode)
        assert reason in str(refused.value)


@pytest.fixture
def routed(namespace: str) -> str:
    """Two cables, `far` and `near`; a default route over each, near's with the lower metric."""
    for number, (name, metric) in enumerate((("far", 200), ("near", 100))):
        within(namespace, "ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-end")
        for end in (name, f"{name}-end"):
            within(namespace, "ip", "link", "set", end, "up")
        within(namespace, "ip", "address", "add", f"198.51.{number}.2/24", "dev", name)
        gateway = f"198.51.{number}.1"
        within(namespace, "ip", "route", "add", "default", "via", gateway, "dev", name, "metric", str(metric))
    return namespace


def test_uplink_is_where_the_best_default_route_leads(routed: str) -> None:
    with enter(routed) as run:
        assert run(interfaces.uplink, "auto") == "near"
        assert run(interfaces.uplink, "far") == "far"
        assert run(interfaces.address_of, "near") == IPv4Address("198.51.1.2")
        within(routed, "ip", "route", "del", "default", "dev", "near")
        assert run(interfaces.uplink, "auto") == "far"
        within(routed, "ip", "route", "replace", "blackhole", "default", "metric", "1")
        assert run(interfaces.uplink, "auto") == "far"


def test_uplink_that_is_not_there_is_an_error_with_its_cure(namespace: str) -> None:
    with enter(namespace) as run:
        with pytest.raises(KernelError, match="uplink nowhere0 does not exist: set `uplink`"):
            run(interfaces.uplink, "nowhere0")
        with pytest.raises(KernelError, match="no IPv4 default route"):
            run(interfaces.uplink, "auto")
        assert run(interfaces.address_of, "nowhere0") is None


def test_watch_tells_what_changes_and_is_silent_otherwise(routed: str) -> None:
    async def watched(*commands: str) -> list[list[str]]:
        """For each command, the devices that were told of within half a second."""
        told: list[str] = []
        task = asyncio.create_task(watch(told.append))
        await asyncio.sleep(0.1)
        heard = []
        for command in commands:
            await asyncio.to_thread(within, routed, *command.split())
            await asyncio.sleep(0.5)
            heard.append(sorted(set(told)))
            told.clear()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return heard

    with enter(routed) as run:
        heard = run(
            lambda: asyncio.run(
                watched(
                    "ip link set far mtu 1400",
                    "true",
                    "ip route add 203.0.113.0/24 dev near",
                    "ip route del default dev near",
                    "ip address add 198.51.9.1/24 dev near",
                    "ip route add default via 198.51.0.1 dev far metric 5",
                    "tc qdisc replace dev near root handle 9: htb",
                    "tc class add dev near parent 9: classid 9:1 htb rate 1mbit",
                    "tc qdisc add dev near parent 9:1 handle 99: pfifo",
                    "tc qdisc del dev near root",
                    "ip link set near down",
                    "ip link set far name away",
                    "ip link del away",
                )
            )
        )
    mtu, nothing, route, default, address, better, replaced, class_, leaf, deleted, down, renamed, gone = heard
    assert class_ == leaf == []
    assert mtu == ["far"]
    assert nothing == route == []
    assert default == better == [ANY]
    assert address == replaced == deleted == ["near"]
    assert "near" in down
    assert {"far", "away"} <= set(renamed)
    assert "away" in gone


def test_watch_does_not_hear_that_somebody_reads_a_root_qdisc(routed: str) -> None:
    """Linux tells everybody of it as of a new one; the pass that reads would wake the next one, for ever."""
    scope = Scope(frozenset({"far"}), "near")

    async def heard() -> list[str]:
        told: list[str] = []
        task = asyncio.create_task(watch(told.append))
        await asyncio.sleep(0.1)
        assert Qdiscs().apply(Diff(add={device: Qdisc(device) for device in scope.devices})) == {}
        await asyncio.sleep(0.5)
        told.clear()
        assert set(Qdiscs().read(scope)) == set(scope.devices)
        within(routed, "tc", "qdisc", "show", "dev", "near")
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return told

    with enter(routed) as run:
        assert run(lambda: asyncio.run(heard())) == []


# -- networks of the host ------------------------------------------------------------------------------------------


def test_a_network_of_the_host_is_refused_and_a_link_that_stands_is_not_torn_down(server: Server) -> None:
    within(server.namespace, "ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    within(server.namespace, "ip", "link", "set", "lan0", "up")
    within(server.namespace, "ip", "address", "add", "10.99.0.5/24", "dev", "lan0")
    within(server.namespace, "ip", "route", "add", "blackhole", "10.98.0.0/16")
    for address, where in (("10.99.0.1/24", "lan0"), ("10.0.0.1/8", "lan0"), ("10.98.7.1/24", "a route")):
        wrong = server.link(address=IPv4Interface(address))
        (error,) = applied(server, wrong).values()
        assert f"which the host has on {where}" in str(error)
        assert wrong.interface not in found(server), "nothing was made"
    link = made(server, address=IPv4Interface("10.97.0.1/24"))
    within(server.namespace, "ip", "address", "add", "10.97.0.9/24", "dev", "lan0")
    assert applied(server, replace(link, mtu=1380)) == {}
    assert found(server)[link.interface].mtu == 1380
    (error,) = applied(server, replace(link, address=IPv4Interface("10.99.0.1/24"))).values()
    assert "lan0" in str(error) and found(server)[link.interface].address == link.address


# -- the route to the accounts -------------------------------------------------------------------------------------


def test_a_link_without_the_route_to_its_network_is_mended_in_place(server: Server) -> None:
    link = made(server)
    network = str(link.address.network)
    handshakes = shown(server.namespace, link.interface)
    within(server.namespace, "ip", "route", "del", network, "dev", link.interface)
    assert found(server)[link.interface] != link
    assert applied(server, link) == {}
    assert found(server) == {link.interface: link}
    assert shown(server.namespace, link.interface)["ifindex"] == handshakes["ifindex"]
    routes = within(server.namespace, "ip", "route", "show", network)
    assert f"dev {link.interface} proto kernel scope link src {link.address.ip}" in routes


def test_a_route_that_leads_to_another_device_is_named(server: Server) -> None:
    link = made(server)
    network = str(link.address.network)
    within(server.namespace, "ip", "route", "replace", network, "dev", "lo")
    (error,) = applied(server, link).values()
    assert f"the route to {network} leads somewhere else" in str(error)
    within(server.namespace, "ip", "route", "del", network, "dev", "lo")
    assert applied(server, link) == {} and found(server) == {link.interface: link}
