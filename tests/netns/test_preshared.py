"""Preshared keys, and clients whose peer was away: real WireGuard, in the kernel and in userspace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from agent.diff import diff
from agent.kernel.wireguard.links import Links
from agent.kernel.wireguard.peers import Peers
from agent.model import Secret
from agent.objects import Diff, Link, Peer, PeerKey
from tests.netns import tunnels
from tests.netns.conftest import enter
from tests.netns.tunnels import ECHO_PORT, STDIN, Client, Server, handshake, scope, some_key, within

pytestmark = pytest.mark.timeout(600)  # the kernel's one also runs under emulation

Tunnel = tuple[Server, Callable[[], Client]]
OURS, OTHER = some_key(70), some_key(71)
AT_ONCE = 5.0  # seconds; a client's own timer lets it wait for 15, of which a second or two are over
NOT_BY_ITSELF = 4.0


@pytest.fixture(params=["kernel", "userspace"])
def tunnel(request: pytest.FixtureRequest, make_namespace: Callable[[], str]) -> Iterator[Tunnel]:
    with tunnels.serving(make_namespace, request.param) as both:
        yield both


@pytest.fixture
def link(tunnel: Tunnel) -> Link:
    server, _ = tunnel
    made = server.link()
    assert server.run(Links(server.mode).apply, Diff(add={made.interface: made})) == {}
    return made


def make(server: Server, link: Link, wanted: dict[PeerKey, Peer]) -> None:
    difference = diff(wanted, server.run(Peers().read, scope(link)))
    assert server.run(Peers().apply, difference) == {}
    assert server.run(Peers().read, scope(link)) == wanted


def connected(server: Server, link: Link, client: Client) -> Peer:
    key, peer = client.peer(link)
    assert server.run(Peers().apply, Diff(add={key: peer})) == {}
    client.connect(link)
    tunnels.eventually(client.reaches)
    return peer


def seconds_until_it_reaches(client: Client, at_most: float) -> float:
    """From now on, of a client that goes on sending, as a customer does. Raises AssertionError after `at_most`."""
    start = time.monotonic()
    with enter(client.namespace) as run_here:
        ours = run_here(tunnels.bound, str(client.address), 0)
    with ours:
        ours.settimeout(0.02)
        while (passed := time.monotonic() - start) < at_most:
            ours.sendto(b"there?", ("10.77.0.1", ECHO_PORT))
            try:
                ours.recv(2048)
                return time.monotonic() - start
            except TimeoutError:
                continue
    raise AssertionError(f"it is not back after {passed:.1f} s")


def give(client: Client, link: Link, preshared_key: str) -> None:
    """To the client of this link, which goes on as it is otherwise."""
    server_key = tunnels.run("wg", "pubkey", stdin=link.private_key.reveal()).strip()
    command = ("wg", "set", client.interface, "peer", server_key, "preshared-key", STDIN)
    within(client.namespace, *command, stdin=preshared_key)


def test_only_who_has_the_preshared_key_connects(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    right, wrong, without = (replace(new_client(), preshared_key=text) for text in (OURS, OTHER, ""))
    wanted = dict(one.peer(link) for one in (right, wrong, without))
    make(server, link, {key: replace(peer, preshared_key=Secret(OURS)) for key, peer in wanted.items()})
    for client in (right, wrong, without):
        client.connect(link)
    tunnels.eventually(right.reaches)
    assert not wrong.reaches() and not without.reaches()
    assert handshake(server.namespace, link.interface, wrong.public_key) == 0


def test_another_preshared_key_holds_at_once_and_disturbs_nobody_else(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    client, other = new_client(), replace(new_client(), preshared_key=OTHER)
    peers = [connected(server, link, each) for each in (client, other)]
    before = handshake(server.namespace, link.interface, other.public_key)
    wanted = {(peer.interface, peer.public_key): peer for peer in peers}
    mine = (link.interface, client.public_key)
    for preshared_key in (OURS, OTHER, ""):
        where = server.run(Peers().endpoints, [mine])
        wanted[mine] = replace(peers[0], preshared_key=Secret(preshared_key), anew=True, endpoint=where[mine])
        make(server, link, wanted)
        assert not client.reaches(), "its session is over"
        give(client, link, preshared_key or some_key(0))
        tunnels.eventually(client.reaches)
    assert other.reaches()
    assert handshake(server.namespace, link.interface, other.public_key) == before


def test_a_preshared_key_that_other_hands_change_is_mended(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    client = replace(new_client(), preshared_key=OURS)
    key, peer = client.peer(link)
    make(server, link, {key: peer})
    for mistake in (OTHER, some_key(0)):
        within(server.namespace, "wg", "set", link.interface, "peer", key[1], "preshared-key", STDIN, stdin=mistake)
        assert diff({key: peer}, server.run(Peers().read, scope(link))).change.keys() == {key}
        make(server, link, {key: peer})
    client.connect(link)
    tunnels.eventually(client.reaches)


def test_who_comes_back_with_his_endpoint_need_not_wait_for_his_own_timer(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    client = new_client()
    peer = connected(server, link, client)
    key = (link.interface, client.public_key)
    where = server.run(Peers().endpoints, [key, (link.interface, some_key(5))])
    assert where.keys() == {key} and where[key].startswith("192.0.2.2:")
    assert server.run(Peers().apply, Diff(remove={key: peer})) == {}
    assert not client.reaches()
    assert server.run(Peers().apply, Diff(add={key: peer})) == {}
    with pytest.raises(AssertionError, match="not back"):
        seconds_until_it_reaches(client, NOT_BY_ITSELF)
    assert server.run(Peers().apply, Diff(remove={key: peer})) == {}
    assert server.run(Peers().apply, Diff(add={key: replace(peer, endpoint=where[key])})) == {}
    assert seconds_until_it_reaches(client, AT_ONCE) < AT_ONCE
    # The keepalive that had the handshake sent is over.
    assert server.run(Peers().peer_states, link.interface)[client.public_key].keepalive == 0
    assert server.run(Peers().read, scope(link)) == {key: peer}


def test_an_endpoint_where_nobody_is_does_no_harm(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    client = new_client()
    key, peer = client.peer(link)
    assert server.run(Peers().apply, Diff(add={key: replace(peer, endpoint="[2001:db8::7]:40000")})) == {}
    assert server.run(Peers().endpoints, [key]) == {}, "nobody has come from there"
    client.connect(link)
    tunnels.eventually(client.reaches)


def test_clients_behind_a_router_that_does_not_answer_keep_nobody_waiting(
    tunnel: Tunnel, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wireguard-go stands still while its packets wait for the router; whoever comes after that is let in at once."""
    server, new_client = tunnel
    monkeypatch.setattr("agent.kernel.wireguard.peers.SLOW_SECONDS", 0.1)
    client, dead = new_client(), "192.0.2.250:40000"
    peers = Peers()
    lost = {
        (link.interface, some_key(number)): Peer(
            link.interface, some_key(number), client.address + number, endpoint=dead
        )
        for number in range(1000, 2500)
    }
    began = time.monotonic()
    assert server.run(peers.apply, Diff(add=lost)) == {}
    assert time.monotonic() - began < 20.0
    peer = connected(server, link, client)
    key = (link.interface, client.public_key)
    assert server.run(Peers().read, scope(link)) == lost | {key: peer}


def test_a_servers_new_key_leaves_its_peers_where_they_are(tunnel: Tunnel, link: Link) -> None:
    """Clients need its public key, whatever we do; who has it is back with his next packet."""
    server, new_client = tunnel
    client = new_client()
    connected(server, link, client)
    before = server.run(Peers().peer_states, link.interface)[client.public_key]
    private, public = tunnels.new_keys()
    time.sleep(0.1)  # of the handshakes of a peer WireGuard takes one in 20 ms, the next one comes after 5 s
    links = Links(server.mode)
    fresh = replace(link, private_key=Secret(private))
    assert server.run(links.apply, Diff(change={link.interface: fresh})) == {}
    after = server.run(Peers().peer_states, link.interface)[client.public_key]
    assert (after.endpoint, after.address) == (before.endpoint, before.address)
    old = tunnels.run("wg", "pubkey", stdin=link.private_key.reveal()).strip()
    within(client.namespace, "wg", "set", client.interface, "peer", old, "remove")
    address = f"{tunnels.SERVER_OUTER}:{link.listen_port}"
    entry = ("peer", public, "endpoint", address, "allowed-ips", "0.0.0.0/0")
    within(client.namespace, "wg", "set", client.interface, *entry)
    assert seconds_until_it_reaches(client, AT_ONCE) < AT_ONCE
