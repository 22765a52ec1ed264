"""A node's certificate is renewed over the living line, and one authority takes the place of another."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from agent import identity as identities
from gateway import authority_commands
from gateway.agents import AgentRefused, Agents
from gateway.authority import NODE_LIFE, new_authority, node_certificate
from gateway.errors import Conflict
from gateway.model import AgentStatus, Standing
from gateway.renewal import RENEWED_BEFORE, Renewal, is_due
from gateway.store import authorities
from gateway.store.authorities import Trust
from tests.contract.test_joined import NODE, Story, gateway, story
from tests.fakes import direct
from tests.fakes.certificates import written

__all__ = ["gateway", "story"]  # fixtures

pytestmark = pytest.mark.anyio

DEADLINE = 30


async def trust_of(it: Story) -> Trust:
    found = await it.store.read(authorities.listed)
    assert found is not None
    return found


async def shown(it: Story, agents: Agents) -> AgentStatus:
    return await agents.status(await direct.node(it.store, NODE))


async def becomes(it: Story, agents: Agents, is_so: Callable[[AgentStatus], bool]) -> None:
    """The agent looks at its file once a second."""
    async with asyncio.timeout(DEADLINE):
        while not is_so(await shown(it, agents)):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)


async def renewed(it: Story, agents: Agents) -> None:
    """What gateways do every twenty seconds; returns once the node shows what came of it."""
    await it.own.look()
    status, trust = await agents.status(await direct.node(it.store, NODE)), await trust_of(it)
    await Renewal(it.store, agents, lambda: {NODE: status}).look()
    await becomes(it, agents, lambda found: not is_due(found, trust, datetime.now(UTC)))


async def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(story: Story) -> None:
    await story.begin()
    agents = Agents(lambda: story.own.current)
    first, trust, node = await shown(story, agents), await trust_of(story), await direct.node(story.store, NODE)
    third = datetime.fromtimestamp(first.certificate_expires, UTC) - RENEWED_BEFORE
    assert not is_due(first, trust, third - timedelta(minutes=1))
    assert is_due(first, trust, third + timedelta(minutes=1))
    key = identities.new_key()
    begun = datetime.now(UTC) - NODE_LIFE + RENEWED_BEFORE - timedelta(minutes=1)
    old = node_certificate(trust.signs, identities.public_key_of(key), NODE, node.tls_name, begun)
    written(story.folder / "identity", identities.identity_of(old, key, trust.signs.certificate))
    await becomes(story, agents, lambda found: found.certificate_expires < first.certificate_expires)
    await renewed(story, agents)
    assert (await shown(story, agents)).certificate_expires >= first.certificate_expires
    await agents.close()
    assert await story.called() == "OK"  # on a new connection
    saved = identities.load(story.folder / "identity")
    assert saved is not None and saved.certificate != old


async def test_an_authority_takes_the_place_of_another_under_a_storm_of_calls(story: Story) -> None:
    await story.begin()
    agents = Agents(lambda: story.own.current)
    node, answers, stop = await direct.node(story.store, NODE), 0, asyncio.Event()

    async def calls() -> None:
        nonlocal answers
        while not stop.is_set():
            await agents.status(node)
            answers += 1

    old = (await trust_of(story)).signs
    new = new_authority(datetime.now(UTC))
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(calls())
        await story.store.change(lambda tx: authorities.add(tx, new, datetime.now(UTC), signs=False))
        await renewed(story, agents)
        assert (await shown(story, agents)).standing == Standing(old.pin, frozenset({old.pin, new.pin}))
        await story.store.change(lambda tx: authorities.use(tx, new.pin))
        await renewed(story, agents)
        assert (await shown(story, agents)).standing == Standing(new.pin, frozenset({old.pin, new.pin}))
        await story.store.change(lambda tx: authorities.drop(tx, old.pin))
        await renewed(story, agents)
        assert (await shown(story, agents)).standing == Standing(new.pin, frozenset({new.pin}))
        stop.set()
    await agents.close()
    assert answers > 50
    assert await story.called() == "OK"


async def test_what_does_not_fit_is_not_taken_and_what_stood_stands(story: Story) -> None:
    await story.begin()
    agents = Agents(lambda: story.own.current)
    node, trust, now = await direct.node(story.store, NODE), await trust_of(story), datetime.now(UTC)
    stranger, ours = new_authority(now), trust.signs.certificate
    key = await agents.new_key(node)
    right = node_certificate(trust.signs, key, NODE, node.tls_name, now)
    another = identities.public_key_of(identities.new_key())
    both = ours + stranger.certificate
    for certificate, trusted, reason in (
        (node_certificate(trust.signs, another, NODE, node.tls_name, now), ours, "a key that was not asked for"),
        (node_certificate(trust.signs, key, NODE, "ff.node.wirelane", now), ours, "another name than this node's"),
        (node_certificate(stranger, key, NODE, node.tls_name, now), stranger.certificate, "trusts none of the auth"),
        (node_certificate(stranger, key, NODE, node.tls_name, now), ours, "not one of its authorities'"),
        (node_certificate(trust.signs, key, NODE, node.tls_name, now - NODE_LIFE), ours, "by this host's clock"),
        (right, b"", "cannot be read"),
        (b"rubbish", ours, "cannot be read"),
        (right, both * 50, "too many"),
    ):
        with pytest.raises(AgentRefused, match=reason):
            await agents.set_certificate(node, certificate, trusted)
    saved = identities.load(story.folder / "identity")
    assert saved is not None and saved.certificate != right
    await agents.set_certificate(node, right, both)
    saved = identities.load(story.folder / "identity")
    assert saved is not None and (saved.certificate, saved.authorities) == (right, both)
    await agents.close()


async def test_two_gateways_may_renew_at_once(story: Story) -> None:
    await story.begin()
    agents = Agents(lambda: story.own.current)
    node, trust, now = await direct.node(story.store, NODE), await trust_of(story), datetime.now(UTC)
    for key in [await agents.new_key(node) for _ in range(2)]:
        certificate = node_certificate(trust.signs, key, NODE, node.tls_name, now)
        await agents.set_certificate(node, certificate, trust.signs.certificate)
        with pytest.raises(AgentRefused, match="was not asked for"):
            await agents.set_certificate(node, certificate, trust.signs.certificate)
    saved = identities.load(story.folder / "identity")
    assert saved is not None and saved.certificate == certificate
    await agents.close()
    assert await story.called() == "OK"


async def test_no_step_is_taken_while_a_node_is_behind(story: Story) -> None:
    await story.begin()
    agents = Agents(lambda: story.own.current)
    old, new = (await trust_of(story)).signs, new_authority(datetime.now(UTC))
    await story.store.change(lambda tx: authorities.add(tx, new, datetime.now(UTC), signs=False))
    use, drop = (Namespace(pin=one.pin[:16], force=False) for one in (new, old))
    with pytest.raises(Conflict, match="fra1: away, or not that far yet"):
        await authority_commands.authority_use(story.store, use)
    await renewed(story, agents)
    await authority_commands.authority_use(story.store, use)
    with pytest.raises(Conflict, match="fra1: away, or not that far yet"):
        await authority_commands.authority_drop(story.store, drop)
    await renewed(story, agents)
    await story.core.stop()
    with pytest.raises(Conflict, match="fra1: away"):
        await authority_commands.authority_drop(story.store, drop)
    await authority_commands.authority_drop(story.store, Namespace(pin=drop.pin, force=True))
    assert (await trust_of(story)).pins == {new.pin}
    await agents.close()
