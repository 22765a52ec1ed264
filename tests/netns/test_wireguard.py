"""Peers in real WireGuard: real handshakes, real packets. Everything twice, in the kernel and in userspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from agent.diff import diff
from agent.kernel.wireguard.door import Absent
from agent.kernel.wireguard.links import Links
from agent.kernel.wireguard.peers import Peers
from agent.objects import Diff, Link, Peer, PeerKey
from tests.netns import tunnels
from tests.netns.tunnels import STDIN, Client, Server, handshake, scope, some_key, within

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
def link(server: Server) -> Link:
    """A link that is up and has no peer."""
    made = server.link()
    assert server.run(Links(server.mode).apply, Diff(add={made.interface: made})) == {}
    return made


def several(link: Link, count: int, first: int = 1000) -> dict[PeerKey, Peer]:
    """Peers that nobody uses: number 1000 has 10.77.3.232, and so on."""
    start = IPv4Address("10.77.0.0")
    peers = (Peer(link.interface, some_key(number), start + number) for number in range(first, first + count))
    return {(peer.interface, peer.public_key): peer for peer in peers}


def connected(server: Server, link: Link, client: Client) -> None:
    assert server.run(Peers().apply, Diff(add=dict([client.peer(link)]))) == {}
    client.connect(link)
    tunnels.eventually(client.reaches)


def test_client_connects_and_its_state_is_told(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    client = new_client()
    connected(server, link, client)
    state = server.run(Peers().peer_states, link.interface)[client.public_key]
    assert state.address == client.address
    assert state.endpoint.startswith("192.0.2.2:")
    assert state.keepalive == 0
    assert state.latest_handshake == handshake(server.namespace, link.interface, client.public_key) > 0
    rx, tx = within(server.namespace, "wg", "show", link.interface, "transfer").split()[1:]
    assert (state.rx_bytes, state.tx_bytes) == (int(rx), int(tx))
    assert state.rx_bytes > 0


def test_removed_peer_passes_no_packet_and_comes_back(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    client = new_client()
    connected(server, link, client)
    peer = dict([client.peer(link)])
    assert server.run(Peers().apply, Diff(remove=peer)) == {}
    assert not client.reaches()
    assert server.run(Peers().apply, Diff(remove=peer)) == {}  # absent is removed
    assert server.run(Peers().apply, Diff(add=peer)) == {}
    # By itself the client notices after 15 s that nobody knows its session; down and up, it does so at once.
    for state in ("down", "up"):
        within(client.namespace, "ip", "link", "set", client.interface, state)
    tunnels.eventually(client.reaches)


def test_changes_of_others_do_not_disturb_a_session(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    client = new_client()
    connected(server, link, client)
    before = handshake(server.namespace, link.interface, client.public_key)
    others = several(link, 50)
    moved = {key: replace(peer, address=peer.address + 500) for key, peer in others.items() if peer.address}
    with ThreadPoolExecutor(1) as thread:
        replies = thread.submit(client.replies, "10.77.0.1", 200, 0.01)
        while not replies.done():
            for change in (Diff(add=others), Diff(change=moved), Diff(remove=moved)):
                assert server.run(Peers().apply, change) == {}
    assert replies.result() == 200
    assert handshake(server.namespace, link.interface, client.public_key) == before


def test_own_address_changes_without_a_new_session(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    client = new_client()
    connected(server, link, client)
    before = handshake(server.namespace, link.interface, client.public_key)
    key, peer = client.peer(link)
    assert server.run(Peers().apply, Diff(change={key: replace(peer, address=IPv4Address("10.77.9.9"))})) == {}
    assert not client.reaches()
    within(client.namespace, "ip", "address", "add", "10.77.9.9/16", "dev", client.interface)
    assert client.reaches(source="10.77.9.9")
    assert handshake(server.namespace, link.interface, client.public_key) == before


def test_peers_read_back_as_written_however_many_messages_they_take(server: Server, link: Link) -> None:
    peers = several(link, 1500)
    assert server.run(Peers().apply, Diff(add=peers)) == {}
    assert server.run(Peers().read, scope(link)) == peers
    listed = within(server.namespace, "wg", "show", link.interface, "allowed-ips").splitlines()
    assert sorted(listed) == sorted(f"{peer.public_key}\t{peer.address}/32" for peer in peers.values())
    assert server.run(Peers().apply, Diff(remove=peers)) == {}
    assert server.run(Peers().read, scope(link)) == {}


def test_what_other_hands_change_is_seen_and_mended_in_place(tunnel: Tunnel, link: Link) -> None:
    server, new_client = tunnel
    client = new_client()
    connected(server, link, client)
    before = handshake(server.namespace, link.interface, client.public_key)
    wanted = several(link, 4) | dict([client.peer(link)])
    keyed, wider, gone, _ = several(link, 4)
    assert server.run(Peers().apply, diff(wanted, server.run(Peers().read, scope(link)))) == {}

    def wg(*change: str, stdin: str = "") -> None:
        within(server.namespace, "wg", "set", link.interface, "peer", *change, stdin=stdin)

    wg(keyed[1], "preshared-key", STDIN, stdin=some_key(7))
    wg(wider[1], "allowed-ips", "10.77.3.233/32,10.99.0.0/24")
    wg(gone[1], "remove")
    wg(client.public_key, "persistent-keepalive", "25")
    wg(some_key(9), "allowed-ips", "10.77.8.8/32")

    todo = diff(wanted, server.run(Peers().read, scope(link)))
    assert set(todo.add) == {gone}
    assert set(todo.change) == {keyed, wider, (link.interface, client.public_key)}
    assert set(todo.remove) == {(link.interface, some_key(9))}
    assert server.run(Peers().apply, todo) == {}
    assert server.run(Peers().read, scope(link)) == wanted
    assert client.reaches()
    assert handshake(server.namespace, link.interface, client.public_key) == before


def test_addresses_change_hands_in_one_apply(server: Server, link: Link) -> None:
    peers = several(link, 3)
    assert server.run(Peers().apply, Diff(add=peers)) == {}
    (a, b, gone), new = peers, (link.interface, some_key(1))
    change = {a: replace(peers[a], address=peers[b].address), b: replace(peers[b], address=peers[a].address)}
    add = {new: Peer(*new, peers[gone].address)}
    assert server.run(Peers().apply, Diff(add, change, {gone: peers[gone]})) == {}
    assert server.run(Peers().read, scope(link)) == change | add


def test_peers_of_a_link_that_is_not_there_are_an_error_each(server: Server, link: Link) -> None:
    lost = replace(link, interface=tunnels.unique_name())
    here, there = several(link, 2), several(lost, 2)
    errors = server.run(Peers().apply, Diff(add=here | there))
    assert errors.keys() == there.keys()
    assert all(lost.interface in str(error) for error in errors.values())
    assert server.run(Peers().read, scope(link, lost)) == here
    assert server.run(Peers().apply, Diff(remove=there)) == {}
    with pytest.raises(Absent, match=lost.interface):
        server.run(Peers().peer_states, lost.interface)


def test_peers_of_a_foreign_link_are_neither_read_nor_changed(server: Server, link: Link) -> None:
    foreign = replace(link, interface=tunnels.unique_name())
    server.run(tunnels.door_of(server.mode).create, foreign.interface)
    within(server.namespace, "wg", "set", foreign.interface, "peer", some_key(5), "allowed-ips", "10.1.1.1/32")
    before = within(server.namespace, "wg", "showconf", foreign.interface)
    mine = several(foreign, 1)
    assert server.run(Peers().apply, Diff(add=mine)).keys() == mine.keys()
    server.run(Peers().apply, Diff(remove={(foreign.interface, some_key(5)): Peer(foreign.interface, "", None)}))
    assert server.run(Peers().read, scope(link, foreign)) == {}
    assert within(server.namespace, "wg", "showconf", foreign.interface) == before
