"""The rules of a server by nftables: damage repaired in one pass, and what an accept of ours cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agent.kernel.nftables.forwarding import BROKEN, NftForwardings
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, CAROL, INTERNET, Crossing, build, ip, nft
from tests.netns.test_forwarding import ROUTER, WANTED, Run, make, read, seen_source


@pytest.fixture
def crossing(make_namespace: Callable[[], str]) -> Iterator[Crossing]:
    made = build(make_namespace)
    ip(made.router, "address", "add", "192.0.2.77/32", "dev", "up0")
    for line in (
        "add table ip filter",
        "add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }",
        "add rule ip filter FORWARD ip saddr 203.0.113.7 drop",
    ):
        nft(made.router, line)
    yield made
    made.close()


@pytest.fixture
def run(crossing: Crossing) -> Iterator[Run]:
    with enter(crossing.router) as call:
        yield Run(call, NftForwardings())


T = "ip wirelane_forwarding"
DAMAGE = {
    "the table sleeps": [f"add table {T} {{ flags dormant; }}"],
    "a chain is gone": [f"delete chain {T} clamp"],
    "a chain hangs elsewhere": [
        f"delete chain {T} clamp",
        f"add chain {T} clamp {{ type filter hook input priority 3; }}",
    ],
    "a chain drops": [f"add chain {T} input {{ policy drop; }}"],
    "NAT is flushed": [f"flush chain {T} postrouting"],
    "all is flushed": [f"flush table {T}"],
    "a rule is there twice": [f'add rule {T} forward iifname "wl0" drop'],
    "a strange rule is inserted": [f"insert rule {T} forward tcp dport 22 accept"],
    "a rule that counts": [f"insert rule {T} input counter"],
    "the order is wrong": [f'insert rule {T} forward iifname "wl0" drop'],
    "another port": [f'add rule {T} input iifname != "wl0" udp dport 9 accept'],
    "rules of a link that nobody wants": [
        f'add rule {T} forward iifname "wl9" oifname "up0" ip saddr 10.9.0.0/24 accept',
        f'add rule {T} input iifname != "wl9" udp dport 9 accept',
        f'add rule {T} postrouting ip saddr 10.9.0.0/24 oifname "up0" masquerade',
    ],
    "a strange chain": [f"add chain {T} stray {{ type filter hook output priority 0; }}", f"add rule {T} stray drop"],
    "a strange set": [f"add set {T} stray {{ type ipv4_addr; }}"],
}


@pytest.mark.parametrize("commands", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_seen_and_repaired_in_one_pass(crossing: Crossing, run: Run, commands: list[str]) -> None:
    make(run, WANTED)
    right, foreign = nft(crossing.router, f"list table {T}"), nft(crossing.router, "list table ip filter")
    for command in commands:
        nft(crossing.router, command)

    assert read(run) != WANTED
    make(run, WANTED)

    assert read(run) == WANTED
    assert sorted(nft(crossing.router, f"list table {T}").split()) == sorted(right.split())
    assert nft(crossing.router, "list table ip filter") == foreign
    assert not crossing.passes(ALICE, CAROL)
    assert not crossing.passes(ALICE, BOB)
    assert seen_source(crossing, ALICE) == ROUTER
    assert seen_source(crossing, CAROL) == "192.0.2.77"


def test_a_table_that_is_gone_is_rebuilt(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    nft(crossing.router, "flush ruleset")
    assert read(run) == {}
    make(run, WANTED)
    assert read(run) == WANTED
    assert seen_source(crossing, ALICE) == ROUTER


def test_connections_outlive_a_repair_with_their_translation(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    sender, receiver = crossing.udp(CAROL), crossing.udp(INTERNET)
    sender.sendto(b"question", receiver.getsockname())
    _, source = receiver.recvfrom(100)
    nft(crossing.router, f"flush table {T}")
    assert read(run).keys() == {BROKEN}
    make(run, WANTED)
    receiver.sendto(b"late answer", source)
    assert sender.recv(100) == b"late answer"
    assert source[0] == "192.0.2.77"


def test_a_drop_of_the_host_stands_and_a_drop_of_ours_too(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    assert crossing.passes(ALICE, INTERNET)
    nft(crossing.router, f"insert rule ip filter FORWARD ip saddr {ALICE} drop")
    assert read(run) == WANTED
    assert not crossing.passes(ALICE, INTERNET)
    nft(crossing.router, f"insert rule ip filter FORWARD ip daddr {BOB} accept")
    assert not crossing.passes(INTERNET, BOB)
