"""The rows that enrolment stands on, on SQLite and on PostgreSQL: authorities, join tokens, names of certificates."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from agent.enrol import JoinToken, asked, enrolled
from agent.identity import new_key
from agent.model import Secret
from gateway.authority import new_authority
from gateway.enrolment import Enrolment, Reply, Request
from gateway.errors import Conflict, EnrolmentRefused, NotFound, SealBroken
from gateway.store import Store, authorities, join_tokens, open_store
from gateway.store import nodes as node_rows
from gateway.store.tables import authorities as authority_rows
from gateway.store.tables import join_tokens as join_token_rows
from gateway.store.transaction import Transaction
from tests.fakes import direct
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio

NODE = "fra1"
NOW = datetime(2026, 11, 27, tzinfo=UTC)


async def change_token(store: Store, values: dict[str, Any]) -> None:
    await store.change(lambda tx: tx.run(sa.update(join_token_rows).values(**values)))


async def found(store: Store, public: bytes) -> join_tokens.JoinToken | None:
    return await store.change(lambda tx: join_tokens.found(tx, public))


async def test_two_gateways_that_begin_at_once_make_one_authority(database_url: str, store: Store) -> None:
    async with await open_store(database_url, KEY) as other:
        made = await asyncio.gather(
            *(each.change(lambda tx: authorities.ensured(tx, NOW)) for each in (store, other, store, other))
        )
    assert len({trust.signs.pin for trust in made}) == 1
    kept = await store.read(authorities.listed)
    assert kept == made[0] and kept is not None
    assert kept.of(kept.signs.pin) == kept.signs and kept.of("another") is None


async def test_an_authority_that_somebody_wrote_into_the_database_is_not_trusted(store: Store) -> None:
    ours, foreign = new_authority(NOW), new_authority(NOW)
    await store.change(lambda tx: authorities.add(tx, ours, NOW, signs=True))

    async def swap(tx: Transaction) -> None:
        await tx.run(sa.update(authority_rows).values(pin=foreign.pin))

    await store.change(swap)
    with pytest.raises(SealBroken):
        await store.read(authorities.listed)


async def test_the_key_of_the_authority_is_sealed(store: Store) -> None:
    trust = await store.change(lambda tx: authorities.ensured(tx, NOW))
    (row,) = await store.read(lambda tx: tx.all(sa.select(authority_rows.c.sealed)))
    assert b"PRIVATE" not in row.sealed and b"CERTIFICATE" not in row.sealed
    assert "PRIVATE" in trust.signs.key.reveal()


async def test_while_one_authority_takes_the_place_of_another_both_are_trusted(store: Store) -> None:
    first = (await store.change(lambda tx: authorities.ensured(tx, NOW))).signs
    second = new_authority(NOW)
    await store.change(lambda tx: authorities.add(tx, second, NOW, signs=False))
    trust = await store.read(authorities.listed)
    assert trust is not None
    assert (trust.signs, trust.others) == (first, (second,))
    assert trust.certificates == (first.certificate, second.certificate)
    assert trust.of(second.pin) == second


async def test_a_join_token_that_somebody_else_wrote_or_changed_is_none(store: Store) -> None:
    node = await direct.add_node(store, NODE, "198.51.100.11:7443")
    token = join_tokens.JoinToken(node.id, NODE, b"p" * 32, "pin", "name.node.wirelane", 100)
    await store.change(lambda tx: join_tokens.put(tx, token))
    assert await found(store, b"q" * 32) is None
    assert await found(store, b"p" * 32) == token
    changes: list[dict[str, Any]] = [{"expires": 10**12}, {"public": b"r" * 32}, {"pin": "x"}, {"tls_name": "x"}]
    for values in changes:
        await store.change(lambda tx: join_tokens.put(tx, token))
        await change_token(store, values)
        assert await found(store, values.get("public", token.public)) is None


async def test_a_node_has_one_join_token_which_goes_with_it(store: Store) -> None:
    node = await direct.add_node(store, NODE, "198.51.100.11:7443")
    first = join_tokens.JoinToken(node.id, NODE, b"p" * 32, "pin", "a.node.wirelane", 100)
    await store.change(lambda tx: join_tokens.put(tx, first))
    await store.change(lambda tx: join_tokens.bind(tx, first, b"key"))
    bound = await found(store, first.public)
    assert bound == replace(first, used_by=b"key")
    second = replace(first, public=b"q" * 32, tls_name="b.node.wirelane")
    await store.change(lambda tx: join_tokens.put(tx, second))
    assert await found(store, first.public) is None
    assert await found(store, second.public) == second
    await direct.remove_node(store, NODE)
    assert await found(store, second.public) is None


async def test_a_node_has_no_name_in_a_certificate_before_it_is_enrolled(store: Store) -> None:
    node = await direct.add_node(store, NODE, "198.51.100.11:7443")
    assert (node.tls_name, node.is_local) == ("", False)
    await store.change(lambda tx: node_rows.name_certificate(tx, node.id, "a.node.wirelane"))
    assert (await direct.node(store, NODE)).tls_name == "a.node.wirelane"


async def test_an_authority_takes_the_place_of_another_in_three_steps(store: Store) -> None:
    old = (await store.change(lambda tx: authorities.ensured(tx, NOW))).signs
    new = new_authority(NOW)
    await store.change(lambda tx: authorities.add(tx, new, NOW, signs=False))
    with pytest.raises(Conflict, match="signs"):
        await store.change(lambda tx: authorities.drop(tx, old.pin))
    await store.change(lambda tx: authorities.use(tx, new.pin[:16]))
    trust = await store.read(authorities.listed)
    assert trust is not None and (trust.signs, trust.others) == (new, (old,))
    await store.change(lambda tx: authorities.drop(tx, old.pin[:16]))
    trust = await store.read(authorities.listed)
    assert trust is not None and (trust.signs, trust.others) == (new, ())
    for wrong in (old.pin, "", "x"):
        with pytest.raises(NotFound):
            await store.change(partial(authorities.use, pin=wrong))


async def test_of_two_hosts_that_ask_two_gateways_at_once_one_gets_in(database_url: str, store: Store) -> None:
    async with await open_store(database_url, KEY) as other:
        gateways = [Enrolment(store), Enrolment(other)]
        for number in range(5):
            name = f"{NODE}-{number}"
            await direct.add_node(store, name, f"198.51.100.11:{7443 + number}")
            token = JoinToken.parse((await gateways[0].new_token(name, 3600)).reveal())
            answers = await asyncio.gather(
                *(each.enrol(request(token, new_key())) for each in gateways), return_exceptions=True
            )
            (won,) = [one for one in answers if isinstance(one, Reply)]
            (lost,) = [one for one in answers if isinstance(one, EnrolmentRefused)]
            assert (won.node, lost.reason) == (name, "used-token")


async def test_another_gateway_answers_who_asks_again(database_url: str, store: Store) -> None:
    await direct.add_node(store, NODE, "198.51.100.11:7443")
    token, key = JoinToken.parse((await Enrolment(store).new_token(NODE, 3600)).reveal()), new_key()
    await Enrolment(store).enrol(request(token, key))
    name = (await direct.node(store, NODE)).tls_name
    async with await open_store(database_url, KEY) as other:
        ask = asked(token, key)
        reply = await Enrolment(other).enrol(parsed(ask.body))
    answer = {
        "status": "success",
        "msg": {"reply": reply.text, "proof": base64.urlsafe_b64encode(reply.proof).decode()},
    }
    found = enrolled(ask, json.dumps(answer).encode(), datetime.now(UTC))
    assert found.identity.name == name == (await direct.node(store, NODE)).tls_name


def request(token: JoinToken, key: Secret) -> Request:
    return parsed(asked(token, key).body)


def parsed(body: bytes) -> Request:
    fields = {name: base64.urlsafe_b64decode(text + "==") for name, text in json.loads(body).items()}
    return Request(**fields)
