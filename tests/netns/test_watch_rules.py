"""That somebody else has changed the rules is heard at once; what we change ourselves, and what is not ours, is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib import import_module
from ipaddress import IPv4Interface
from typing import Any

import pytest

from agent.kernel import iptables, nftables
from agent.kernel.iptables import strangers, tables
from agent.kernel.nftables import nft
from agent.objects import Diff, Forwarding
from tests.netns.conftest import enter
from tests.netns.crossing import iptables as legacy
from tests.netns.crossing import nft as stranger

QUIET_SECONDS = 0.3
SERVER = Forwarding("wl0", IPv4Interface("10.66.0.1/24"), "up0", 51820, False, None)
Watch = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]
Told = Callable[[], Awaitable[int]]


@asynccontextmanager
async def listening(watch: Watch, seconds: float) -> AsyncIterator[Told]:
    """How often it was told since one asked last, after `seconds` without an end of it."""
    told: list[None] = []
    task = asyncio.create_task(watch(lambda: told.append(None)))

    async def heard() -> int:
        await asyncio.sleep(seconds)
        count = len(told)
        told.clear()
        return count

    try:
        assert await heard() == 0
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- nftables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table ip wirelane_forwarding",
        "flush table ip wirelane_forwarding",
        "flush chain ip wirelane_forwarding forward",
        "insert rule ip wirelane_forwarding forward accept",
        "add chain ip wirelane_forwarding theirs",
        "add table inet wirelane_filter",
        "add table ip6 wirelane",
        "add table ip theirs; add rule ip wirelane_forwarding forward counter",
    ],
)
def test_a_change_of_a_table_of_ours_is_told(namespace: str, damage: str) -> None:
    async def heard() -> int:
        await asyncio.to_thread(nftables.NftForwardings().apply, Diff(add={"wl0": SERVER}))
        async with listening(nftables.watch, QUIET_SECONDS) as heard:
            await asyncio.to_thread(stranger, namespace, damage)
            return await heard()

    with enter(namespace) as run:
        assert run(lambda: asyncio.run(heard())) == 1


def test_what_we_change_and_what_is_not_ours_is_not_told(namespace: str) -> None:
    async def walk() -> list[int]:
        counts, door = [], nftables.NftForwardings()
        async with listening(nftables.watch, QUIET_SECONDS) as heard:
            for change in (Diff(add={"wl0": SERVER}), Diff(remove={"wl0": SERVER}), Diff(add={"wl0": SERVER})):
                assert await asyncio.to_thread(door.apply, change) == {}
                counts.append(await heard())
            for family in ("bridge", "inet", "arp", "netdev"):
                await asyncio.to_thread(stranger, namespace, f"add table {family} wirelane")
            for line in (
                "add table ip6 wirelane_ports",
                "add table ip wirelane_trial",
                "add table ip theirs",
                "add chain ip theirs forward",
            ):
                await asyncio.to_thread(stranger, namespace, line)
            counts.append(await heard())
            await asyncio.to_thread(nft.apply, ["add map ip wirelane_forwarding m { type ipv4_addr : mark; }"])
            for line in ("add element ip wirelane_forwarding m { 10.0.0.1 : 1 }", "flush map ip wirelane_forwarding m"):
                await asyncio.to_thread(stranger, namespace, line)
            counts.append(await heard())
        return counts

    with enter(namespace) as run:
        assert run(lambda: asyncio.run(walk())) == [0, 0, 0, 0, 0]


def test_it_hears_on_after_more_than_it_could_take_in(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux drops what does not fit: then it tells that something may have been."""
    monkeypatch.setattr(import_module("agent.kernel.nftables.watch"), "_BUFFER_BYTES", 1 << 16)

    async def walk() -> tuple[int, int]:
        lines = "\n".join(f"add chain ip theirs c{number}" for number in range(20_000))
        async with listening(nftables.watch, QUIET_SECONDS) as heard:
            stranger(namespace, "add table ip theirs")
            nft.apply(lines.splitlines())  # on the loop's own thread: it cannot listen meanwhile
            dropped = await heard()
            await asyncio.to_thread(stranger, namespace, "add table ip wirelane")
            return dropped, await heard()

    with enter(namespace) as run:
        dropped, later = run(lambda: asyncio.run(walk()))
    assert dropped == 1 and later == 1


# -- legacy iptables -----------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(strangers, "LEAST_SECONDS", 0.2)
    monkeypatch.setattr(strangers, "_left", {})
    monkeypatch.setattr(strangers, "_met", set())


@pytest.mark.parametrize("damage", ["-F", "-t nat -F", "-t filter -N THEIRS", "-t mangle -A FORWARD -j ACCEPT"])
def test_a_legacy_table_that_others_change_is_told_once(namespace: str, quick: None, damage: str) -> None:
    async def heard() -> tuple[int, int]:
        await asyncio.to_thread(iptables.Forwardings().apply, Diff(add={"wl0": SERVER}))
        legacy(namespace, "-t mangle -L")
        async with listening(iptables.watch, 2 * QUIET_SECONDS) as heard:
            await asyncio.to_thread(legacy, namespace, damage)
            return await heard(), await heard()

    with enter(namespace) as run:
        assert run(lambda: asyncio.run(heard())) == (1, 0)


def test_who_goes_on_changing_a_table_does_not_hide_it(namespace: str, quick: None) -> None:
    async def heard() -> int:
        await asyncio.to_thread(iptables.Forwardings().apply, Diff(add={"wl0": SERVER}))
        async with listening(iptables.watch, 0.3) as heard:
            await asyncio.to_thread(legacy, namespace, "-F")
            for number in range(12):  # another size at each look
                await asyncio.to_thread(legacy, namespace, f"-A INPUT -s 203.0.113.{number} -j DROP")
            return await heard()

    with enter(namespace) as run:
        assert run(lambda: asyncio.run(heard())) >= 1


def test_our_own_changes_of_legacy_tables_are_not_told_but_what_they_met_is(namespace: str, quick: None) -> None:
    async def walk() -> list[int]:
        counts, door = [], iptables.Forwardings()
        other = Forwarding("wl1", IPv4Interface("10.67.0.1/24"), "up0", 51821, True, None)
        async with listening(iptables.watch, 2 * QUIET_SECONDS) as heard:
            for change in (Diff(add={"wl0": SERVER}), Diff(add={"wl1": other}), Diff(remove={"wl1": other})):
                assert await asyncio.to_thread(door.apply, change) == {}
                counts.append(await heard())
            for _ in range(5):  # without an end: each of us changes what the other one left
                await asyncio.to_thread(door.apply, Diff(add={"wl1": other}))
                await asyncio.to_thread(door.apply, Diff(remove={"wl1": other}))
            counts.append(await heard())
            await asyncio.to_thread(legacy, namespace, "-t nat -F")
            await asyncio.to_thread(door.apply, Diff(add={"wl1": other}))
            counts.append(await heard())
        return counts

    with enter(namespace) as run:
        assert run(lambda: asyncio.run(walk())) == [0, 0, 0, 0, 1]


def test_tables_that_nobody_uses_are_not_loaded_by_looking(namespace: str, quick: None) -> None:
    async def looked() -> bool:
        async with listening(iptables.watch, QUIET_SECONDS):
            return tables.has_table("filter")

    with enter(namespace) as run:
        assert run(lambda: asyncio.run(looked())) is False
