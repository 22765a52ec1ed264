"""gateway/creation.py: a batch is what its accounts would be one after the other, and callers share transactions."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import creation
from gateway.creation import Creation, Newcomer, Outcome
from gateway.errors import ApiError, Conflict, DatabaseUnavailable, InvalidValue
from gateway.keypair import new_pair
from gateway.model import Account, NewAccount, Secret, ServerValues
from gateway.store import accounts as rows
from gateway.store import ranges
from gateway.store.tables import accounts as accounts_table
from tests.fakes import direct
from tests.fakes.product import NODE, Product, migrated_sqlite, running_product

pytestmark = pytest.mark.anyio

PAIRS = [new_pair() for _ in range(3)]
NAMES = st.sampled_from([None, None, "peer_1", "peer_2", "peer_4", "bob"])
WISHES = st.builds(
    NewAccount,
    server=st.sampled_from(["s", "s", "s", "nowhere"]),
    name=NAMES,
    username=st.sampled_from([None, None, "user_1", "user_3", "bob"]),
    address=st.sampled_from([None, None, *(IPv4Address(f"10.5.0.{n}") for n in (1, 2, 4, 9))]),
    public_key=st.sampled_from([None, None, *(pair.public for pair in PAIRS)]),
)


async def with_server(product: Product) -> None:
    await product.servers.create(ServerValues(name="s", address=IPv4Interface("10.5.0.1/29")))


def shown(outcome: Account | ApiError) -> tuple[Any, ...]:
    """What must not depend on how it came."""
    if isinstance(outcome, ApiError):
        return type(outcome), outcome.text, outcome.field
    return outcome.name, outcome.username, outcome.address, outcome.mark


async def one_by_one(product: Product, wishes: Sequence[NewAccount]) -> list[tuple[Any, ...]]:
    return [shown((await product.creation.many([new]))[0]) for new in wishes]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WISHES, max_size=9))
def test_a_batch_is_what_its_accounts_are_one_after_the_other(tmp_path: Path, wishes: list[NewAccount]) -> None:
    async def story() -> None:
        async with running_product(urls[0], account_limit=6) as product:
            await with_server(product)
            expected = await one_by_one(product, wishes)
        async with running_product(urls[1], account_limit=6) as product:
            await with_server(product)
            outcomes = await product.creation.many(wishes)
            assert [shown(outcome) for outcome in outcomes] == expected
            made = {each.name: each for each in outcomes if isinstance(each, Account)}
            assert await product.store.read(lambda tx: rows.by_names(tx, list(made))) == made
            for scope in (ranges.PEERS, ranges.USERS):
                left = await product.store.read(partial(ranges.free, scope=scope))
                taken = {n for each in made.values() for n in numbers_of(each, scope)}
                assert not any(n in part for part in left for n in taken)

    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    urls = [migrated_sqlite(folder / name) for name in ("a.db", "b.db")]
    asyncio.run(story())


def numbers_of(account: Account, scope: str) -> list[int]:
    name = account.name if scope == ranges.PEERS else account.username
    return [int(name.split("_")[1])] if name.startswith(f"{scope}_") else []


async def test_one_transaction_and_one_revision_for_a_batch(product: Product) -> None:
    await with_server(product)
    before = (await direct.node(product.store, NODE)).revision
    made = await product.creation.many([NewAccount("s"), NewAccount("nowhere"), NewAccount("s")])
    assert [isinstance(each, Account) for each in made] == [True, False, True]
    assert (await direct.node(product.store, NODE)).revision == before + 1
    assert await product.creation.many([]) == []
    assert isinstance((await product.creation.many([NewAccount("nowhere")]))[0], InvalidValue)
    assert (await direct.node(product.store, NODE)).revision == before + 1, (
        "nothing came of it, so the node need not know"
    )


async def test_a_key_that_cannot_be_spoils_only_its_own_line(product: Product) -> None:
    await with_server(product)
    bad = NewAccount("s", private_key=Secret("short"))
    made = await product.creation.many([NewAccount("s"), bad, NewAccount("s")])
    assert [shown(each)[0] for each in made] == ["peer_1", InvalidValue, "peer_2"]


async def test_generated_values_that_somebody_has_are_passed_over_within_a_batch(product: Product) -> None:
    await with_server(product)
    await product.creation.many([NewAccount("s")])
    values = {"name": "peer_3", "username": "user_2", "mark": 102, "address": int(IPv4Address("10.5.0.4"))}
    await product.store.change(lambda tx: tx.run(sa.update(accounts_table).values(**values)))
    made = await product.creation.many([NewAccount("s")] * 3)
    assert all(isinstance(each, Account) for each in made)
    found = [each for each in made if isinstance(each, Account)]
    assert sorted(each.name for each in found) == ["peer_2", "peer_4", "peer_5"]
    assert sorted(each.mark for each in found) == [101, 103, 104]
    assert len({each.address for each in [*found, *await direct.accounts(product.accounts)]}) == 4


# -- group commit -------------------------------------------------------------------------------------------------


async def test_callers_that_come_meanwhile_share_a_transaction(product: Product) -> None:
    await with_server(product)
    before = (await direct.node(product.store, NODE)).revision
    use = Creation(product.store)
    made = await asyncio.gather(*(use.one(NewAccount("s")) for _ in range(5)))
    assert len({each.account.id for each in made}) == 5
    assert [each.revision for each in made] == [before + 1] + [before + 2] * 4


async def test_a_refused_caller_spoils_nobody_elses_create(product: Product) -> None:
    await with_server(product)
    use = Creation(product.store)
    names = ["a", "b", "b", "c", "b"]
    found = await asyncio.gather(*(use.one(NewAccount("s", name=name)) for name in names), return_exceptions=True)
    assert [isinstance(each, Conflict) for each in found] == [False, False, True, False, True]


async def test_when_the_one_who_runs_it_is_cancelled_the_next_begins_again(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_server(product)
    use, real, started = Creation(product.store), creation.create, asyncio.Event()

    async def slow(*given: Any) -> list[Outcome]:
        outcomes = await real(*given)
        started.set()
        await asyncio.sleep(0.2)
        return outcomes

    monkeypatch.setattr(creation, "create", slow)
    first = asyncio.create_task(use.one(NewAccount("s", name="first")))
    others = [asyncio.create_task(use.one(NewAccount("s", name=f"other_{n}"))) for n in range(3)]
    await started.wait()
    first.cancel()
    await asyncio.gather(*others)
    assert first.cancelled()
    assert [each.name for each in await direct.accounts(product.accounts)] == ["other_0", "other_1", "other_2"]


async def test_a_bug_in_one_ends_only_that_one(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    await with_server(product)
    use, real = Creation(product.store), creation.create

    async def picky(tx: Any, newcomers: Sequence[Newcomer], limit: int, rested: int) -> list[Outcome]:
        if any(each.new.name == "bad" for each in newcomers):
            raise RuntimeError("a bug")
        return await real(tx, newcomers, limit, rested)

    monkeypatch.setattr(creation, "create", picky)
    names = ["a", "b", "bad", "c"]
    found = await asyncio.gather(*(use.one(NewAccount("s", name=name)) for name in names), return_exceptions=True)
    assert [isinstance(each, RuntimeError) for each in found] == [False, False, True, False]
    assert [each.name for each in await direct.accounts(product.accounts)] == ["a", "b", "c"]


async def test_a_database_that_is_away_is_an_error_of_each(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*given: Any) -> list[Outcome]:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(creation, "create", away)
    use = Creation(product.store)
    found = await asyncio.gather(*(use.one(NewAccount("s")) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(each, DatabaseUnavailable) for each in found)
    assert len({id(each) for each in found}) == 3


async def test_the_servers_own_key_is_refused_in_a_batch(product: Product) -> None:
    await with_server(product)
    server = await product.servers.get("s")
    use = Creation(product.store)
    (refusal,) = await use.many([NewAccount("s", public_key=server.public_key)])
    assert isinstance(refusal, InvalidValue) and refusal.field == "public_key"


async def test_who_hung_up_gets_nothing_and_costs_the_others_nothing(product: Product) -> None:
    await with_server(product)
    gone = Newcomer(NewAccount("s", name="gone"), new_pair(), lambda: True)
    first, last = (Newcomer(NewAccount("s"), new_pair()) for _ in range(2))
    outcomes = await product.store.change(lambda tx: creation.create(tx, [first, gone, last], 0, 0))
    assert [isinstance(outcome, Conflict) for outcome in outcomes] == [False, True, False]
    assert next(outcome.text for outcome in outcomes if isinstance(outcome, Conflict)) == creation.GONE
    assert [account.name for account in await direct.accounts(product.accounts)] == ["peer_1", "peer_2"]
