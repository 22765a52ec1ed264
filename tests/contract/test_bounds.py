"""Whoever may call the agent cannot fill it, and nothing that he sends is a bug: over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import AgentError
from agent.rpc import bounds, codec
from protos.agent.v1 import agent_pb2 as pb
from protos.agent.v1.agent_pb2_grpc import AgentStub
from tests.fakes.agent_core import running_core
from tests.fakes.state import key

pytestmark = pytest.mark.anyio

HUGE = (1 << 64) - 1


@asynccontextmanager
async def agent(folder: Path) -> AsyncIterator[Any]:
    channel = grpc.aio.insecure_channel(f"unix:{folder}/agent.sock")
    async with running_core(folder / "agent.sock", folder / "agent.db"), channel:
        yield AgentStub(channel)


async def refusal(call: Any) -> str:
    """The text of an INVALID_ARGUMENT."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    return str(caught.value.details())


def server(**different: Any) -> pb.Server:
    values: dict[str, Any] = {
        "name": "s1",
        "interface": "wg1",
        "private_key": key(9),
        "listen_port": 51821,
        "address": "10.0.1.1/24",
    }
    return pb.Server(**(values | different))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (server(interface="-f"), "interface"),
        (server(interface="wg1; reboot"), "interface"),
        (server(interface="eth0"), "interface"),
        (server(interface="../wg1"), "interface"),
        (server(interface="wg" + "1" * 40), "interface"),
        (server(name="x" * 5000), "name"),
        (server(listen_port=80), "listen_port"),
        (server(private_key="x" * 100_000), "private_key"),
        (server(address="10.0.1.1/24" + " " * 1000), "address"),
        (server(reach="10.0.0.0/8," * 200), "reach"),
        (server(external_ip="0.0.0.0\n"), "external_ip"),
    ],
)
async def test_a_value_that_cannot_be_right_names_its_field(tmp_path: Path, wrong: pb.Server, field: str) -> None:
    async with agent(tmp_path) as stub:
        header = pb.SnapshotHeader(revision=1, server_count=1)
        text = await refusal(stub.Snapshot(iter([pb.SnapshotChunk(header=header, servers=[wrong])]), timeout=10))
        assert field in text and len(text) < 2000


async def test_numbers_beyond_what_a_file_can_hold_are_refused(tmp_path: Path) -> None:
    async with agent(tmp_path) as stub:
        for request in (
            pb.TotalsRequest(after=HUGE),
            pb.TotalsRequest(account_ids=[HUGE]),
            pb.TotalsRequest(account_ids=range(bounds.MOST_ASKED_FOR + 1)),
        ):
            await refusal(anext(aiter(stub.Totals(request, timeout=10))))
        header = pb.SnapshotHeader(revision=HUGE)
        assert "revision" in await refusal(stub.Snapshot(iter([pb.SnapshotChunk(header=header)]), timeout=10))
        for patch in (
            pb.PatchRequest(revision=HUGE),
            pb.PatchRequest(base_revision=HUGE),
            pb.PatchRequest(remove_accounts=[HUGE]),
            pb.PatchRequest(remove_servers=["x"] * (bounds.MOST_SERVERS + 1)),
            pb.PatchRequest(time_zone="../" * 1000 + "etc/passwd"),
        ):
            await refusal(stub.Patch(patch, timeout=10))


@pytest.mark.parametrize("kind", ["announced", "unannounced"])
async def test_a_snapshot_that_never_ends_is_cut_at_what_it_announced(tmp_path: Path, kind: str) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[pb.SnapshotChunk]:
        nonlocal sent
        announced = bounds.MOST_ACCOUNTS if kind == "announced" else 3
        yield pb.SnapshotChunk(header=pb.SnapshotHeader(revision=1, account_count=announced))
        while sent < 500_000:
            number = sent + 2
            values: dict[str, Any] = {
                "name": f"a{number}",
                "server": "s1",
                "address": "10.0.1.9",
                "public_key": key(number),
                "mark": 100,
            }
            yield pb.SnapshotChunk(accounts=[pb.Account(id=number + i, **values) for i in range(500)])
            sent += 500

    async with agent(tmp_path) as stub:
        assert "too many" in await refusal(stub.Snapshot(chunks(), timeout=60))
        assert sent < 4 * bounds.MOST_ACCOUNTS, "what lies in buffers on the way, and no more"
        assert (await stub.Status(pb.StatusRequest(), timeout=5)).needs_snapshot


async def test_a_snapshot_that_stalls_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "CHUNK_SECONDS", 0.2)

    async def chunks() -> AsyncIterator[pb.SnapshotChunk]:
        yield pb.SnapshotChunk(header=pb.SnapshotHeader(revision=1, account_count=3))
        await asyncio.sleep(30)

    async with agent(tmp_path) as stub:
        assert "did not come" in await refusal(stub.Snapshot(chunks(), timeout=10))


async def test_one_snapshot_comes_at_a_time_and_one_that_dawdles_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "TURN_SECONDS", 0.2)
    monkeypatch.setattr(bounds, "SNAPSHOT_SECONDS", 1.0)

    async def dawdling() -> AsyncIterator[pb.SnapshotChunk]:
        yield pb.SnapshotChunk(header=pb.SnapshotHeader(revision=1, account_count=1_000))
        for _ in range(100):
            await asyncio.sleep(0.05)
            yield pb.SnapshotChunk()

    async with agent(tmp_path) as stub:
        first = asyncio.ensure_future(refusal(stub.Snapshot(dawdling(), timeout=10)))
        await asyncio.sleep(0.3)
        whole = [pb.SnapshotChunk(header=pb.SnapshotHeader(revision=2))]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Snapshot(iter(whole), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and "another snapshot" in str(caught.value.details())
        assert "did not come in time" in await first
        assert (await stub.Snapshot(iter(whole), timeout=10)).revision == 2


def some(message: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(message, **fields)


TEXTS = st.one_of(
    st.text(max_size=40), st.sampled_from(["wg1", "10.0.0.1/24", "10.0.0.2", key(3), "s1", "UTC", "internet"])
)
NUMBERS = st.one_of(st.integers(0, 70_000), st.sampled_from([(1 << 32) - 1]))
BIG = st.one_of(st.integers(0, 5), st.integers(0, HUGE))
SERVERS = some(
    pb.Server,
    **dict.fromkeys(("name", "interface", "private_key", "address", "external_ip", "reach"), TEXTS),
    **dict.fromkeys(("listen_port", "mtu"), NUMBERS),
)
ACCOUNTS = some(
    pb.Account,
    id=BIG,
    **dict.fromkeys(("name", "server", "address", "public_key"), TEXTS),
    **dict.fromkeys(("mark", "download", "upload"), NUMBERS),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SERVERS, max_size=2), st.lists(ACCOUNTS, max_size=2), st.lists(BIG, max_size=2), BIG, BIG, TEXTS)
def test_whatever_comes_is_a_value_or_an_error_of_ours(
    servers: list[pb.Server], accounts: list[pb.Account], gone: list[int], base: int, revision: int, zone: str
) -> None:
    message = pb.PatchRequest(
        epoch="e",
        base_revision=base,
        revision=revision,
        put_servers=servers,
        put_accounts=accounts,
        remove_accounts=gone,
        time_zone=zone,
    )
    from agent.desired import Desired, Snapshot

    calls: list[Callable[[], object]] = [
        lambda: Desired.of("e", Snapshot(1)).patched(codec.patch_in(message)),
        lambda: codec.header_in(pb.SnapshotHeader(revision=revision, account_count=base, time_zone=zone)),
    ]
    for call in calls:
        with suppress(AgentError):
            call()
