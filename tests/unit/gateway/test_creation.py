"""gateway/creation.py: a batch is what its accounts would be one after the other, and callers share transactions."""

from __future__ import annotations

import asyncio
import base64
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway import creation
from gateway.allocate import Range
from gateway.creation import Creation, Newcomer, Outcome
from gateway.errors import ApiError, Conflict, DatabaseUnavailable, InvalidValue
from gateway.keypair import WRONG_KEYS, new_pair
from gateway.model import GENERATE, Account, NewAccount, Secret, ServerValues
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
    address_ipv6=st.sampled_from([None, None, *(IPv6Address(f"2001:db8:77::{n}") for n in (1, 2, 4))]),
)
NETWORK = IPv6Interface("2001:db8:77::1/64")
ADDRESS = IPv4Address("10.5.0.2")  # the first that an account gets


async def with_server(product: Product) -> None:
    values = ServerValues(name="s", address=IPv4Interface("10.5.0.1/29"), address_ipv6=NETWORK)
    await product.servers.create(values)


def shown(outcome: Account | ApiError) -> tuple[Any, ...]:
    """What must not depend on how it came."""
    if isinstance(outcome, ApiError):
        return type(outcome), outcome.text, outcome.field
    return outcome.name, outcome.username, outcome.address, outcome.mark, outcome.address_ipv6


async def one_by_one(product: Product, wishes: Sequence[NewAccount]) -> list[tuple[Any, ...]]:
    return [shown((await product.creation.many([new]))[0]) for new in wishes]


TAKEN: dict[str, Any] = {"name": "peer_1", "username": "user_1", "address": ADDRESS, "address_ipv6": NETWORK.ip + 1}


@example([NewAccount("s"), *(NewAccount("s", **{field: value}) for field, value in TAKEN.items()), NewAccount("s")])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WISHES, max_size=9))
def test_a_batch_is_what_its_accounts_are_one_after_the_other(tmp_path: Path, wishes: list[NewAccount]) -> None:
    async def story() -> None:
        async with running_product(urls[0], account_limit=4) as product:
            await with_server(product)
            expected = await one_by_one(product, wishes)
        async with running_product(urls[1], account_limit=4) as product:
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


async def test_a_batch_ends_where_the_accounts_do_and_who_is_refused_takes_no_place(database: str) -> None:
    async with running_product(database, account_limit=3) as product:
        await with_server(product)
        (first,) = await product.creation.many([NewAccount("s", name="bob")])
        found = await product.creation.many([NewAccount("s", name="bob"), *[NewAccount("s")] * 4])
    said = [each.text if isinstance(each, ApiError) else each.name for each in (first, *found)]
    full = "VPN account limit exceeded"
    assert said == ["bob", "The name is already in use", "peer_1", "peer_2", full, full]


async def test_a_key_that_cannot_be_spoils_only_its_own_line(product: Product) -> None:
    await with_server(product)
    bad = NewAccount("s", private_key=Secret("short"))
    made = await product.creation.many([NewAccount("s"), bad, NewAccount("s")])
    assert [shown(each)[0] for each in made] == ["peer_1", InvalidValue, "peer_2"]


async def test_generated_values_that_somebody_has_are_passed_over_within_a_batch(product: Product) -> None:
    await with_server(product)
    await product.creation.many([NewAccount("s")])
    values = {"name": "peer_3", "username": "user_2", "mark": 102, "address": int(IPv4Address("10.5.0.4"))}
    values |= {"address_ipv6": "2001:db8:77::3"}
    await product.store.change(lambda tx: tx.run(sa.update(accounts_table).values(**values)))
    made = await product.creation.many([NewAccount("s")] * 3)
    assert all(isinstance(each, Account) for each in made)
    found = [each for each in made if isinstance(each, Account)]
    assert sorted(each.name for each in found) == ["peer_2", "peer_4", "peer_5"]
    assert sorted(each.mark for each in found) == [101, 103, 104]
    assert sorted(str(each.address_ipv6)[-1] for each in found) == ["4", "5", "6"]
    assert len({each.address for each in [*found, *await direct.accounts(product.accounts)]}) == 4


async def test_the_second_family_has_numbers_of_its_own(product: Product) -> None:
    """Each gets the lowest that is left, or the address that he names."""
    await with_server(product)
    await product.servers.create(ServerValues(name="plain"))
    far = "2001:db8:77:0:ffff:ffff:ffff:ffff"  # no number goes so far
    wishes = [None, "2001:db8:77::3", None, far, "2001:db8:77::3", far, "2001:db8:77::1", "2001:db8:78::9"]
    batch = [NewAccount("s", address_ipv6=IPv6Address(wish) if wish else None) for wish in wishes]
    batch += [NewAccount("plain", address_ipv6=IPv6Address("2001:db8:77::9")), NewAccount("plain")]
    found = await product.creation.many(batch)
    made = [str(each.address_ipv6) for each in found if isinstance(each, Account)]
    assert made == ["2001:db8:77::2", "2001:db8:77::3", "2001:db8:77::4", far, "None"]
    outside = InvalidValue, creation.OUT_OF_RANGE, "allowed_IPs_ipv6"
    assert [shown(each) for each in found if isinstance(each, ApiError)] == [
        *[(Conflict, "IP address already in use", "allowed_IPs_ipv6")] * 2,
        *[outside] * 2,
        (InvalidValue, "The wireguard server has no IPv6", "allowed_IPs_ipv6"),
    ]
    (last,) = await product.creation.many([NewAccount("s")])
    assert isinstance(last, Account) and str(last.address_ipv6) == "2001:db8:77::5"


async def test_a_refusal_names_the_field(product: Product) -> None:
    await with_server(product)
    address, pair = IPv4Address("10.5.0.4"), PAIRS[0]
    there = NewAccount("s", name="bob", username="robert", address=address, public_key=pair.public)
    (first,) = await product.creation.many([there])
    assert isinstance(first, Account)
    batch = [
        NewAccount("nowhere"),
        NewAccount("s", name="bob"),
        NewAccount("s", username="robert"),
        NewAccount("s", address=address),
        NewAccount("s", address_ipv6=first.address_ipv6),
        NewAccount("s", public_key=pair.public),
        NewAccount("s", address=IPv4Address("10.5.0.1")),
    ]
    assert [shown(each) for each in await product.creation.many(batch)] == [
        (InvalidValue, "Wireguard server not valid", "wg_name"),
        (Conflict, "The name is already in use", "name"),
        (Conflict, "The username is already in use", "username"),
        (Conflict, "IP address already in use", "allowed_IPs"),
        (Conflict, "IP address already in use", "allowed_IPs_ipv6"),
        (InvalidValue, WRONG_KEYS, "public_key"),
        (InvalidValue, creation.OUT_OF_RANGE, "allowed_IPs"),
    ]


async def leave(product: Product, scope: str, *numbers: int) -> None:
    """Only these are free."""
    left = [Range(number, number) for number in numbers]
    await product.store.change(lambda tx: ranges.fill(tx, scope, left))


USED_UP = {
    "name": ("No generated name is left, give one", "name"),
    "username": ("No generated username is left, give one", "username"),
    "address": ("No free IP address left on the wireguard server", "allowed_IPs"),
    "address_ipv6": ("No generated allowed_IPs_ipv6 is left, give one", "allowed_IPs_ipv6"),
    "mark": (f"Node {NODE} is full: it has no free mark left", ""),
}


async def scopes(product: Product) -> dict[str, str]:
    """Where the numbers of a field come from."""
    server = await product.servers.get("s")
    addresses = {"address": ranges.addresses_of(server.id), "address_ipv6": ranges.addresses_ipv6_of(server.id)}
    return {"name": ranges.PEERS, "username": ranges.USERS, "mark": ranges.marks_of(1), **addresses}


async def free(product: Product) -> dict[str, list[Range]]:
    fields = (await scopes(product)).items()
    return {field: await product.store.read(partial(ranges.free, scope=scope)) for field, scope in fields}


@pytest.mark.parametrize("field", USED_UP)
async def test_what_is_used_up_is_said_and_nothing_else_is_taken(product: Product, field: str) -> None:
    await with_server(product)
    await leave(product, (await scopes(product))[field])
    before = await free(product)
    found = await product.creation.many([NewAccount("s")])
    assert [shown(each) for each in found] == [(Conflict, *USED_UP[field])]
    assert await free(product) == before


async def test_an_address_that_was_given_back_is_nobodys_for_an_hour(product: Product) -> None:
    await with_server(product)
    now = time.time()
    use = Creation(product.store, now=lambda: now)

    async def made() -> Account:
        return (await use.one(NewAccount("s"))).account

    first = await made()
    await product.accounts.delete(first.name)
    assert (await made()).address == first.address + 1
    now += 3600 + 10
    assert (await made()).address == first.address == ADDRESS


# -- what only the database notices ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "refusal"),
    [
        ({"name": "peer_7"}, (Conflict, "The name is already in use", "name")),
        ({"username": "user_7"}, (Conflict, "The username is already in use", "username")),
        ({"address": IPv4Address("10.5.0.4")}, (Conflict, "IP address already in use", "allowed_IPs")),
        ({"address_ipv6": IPv6Address("2001:db8:77::4")}, (Conflict, "IP address already in use", "allowed_IPs_ipv6")),
        ({"public_key": PAIRS[0].public}, (InvalidValue, WRONG_KEYS, "public_key")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_who_is_refused_at_last_gives_back_what_was_generated_for_him(
    product: Product, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    await with_server(product)
    await product.creation.many([NewAccount("s", **named)])
    before, look, write, is_written = await free(product), rows.in_use, rows.insert, False

    async def in_use(*given: Any) -> set[Any]:
        return await look(*given) if is_written else set()

    async def insert(*given: Any) -> set[int]:
        nonlocal is_written
        is_written = True
        return await write(*given)

    monkeypatch.setattr(rows, "in_use", in_use)
    monkeypatch.setattr(rows, "insert", insert)
    found = await product.creation.many([NewAccount("s", **named)])
    assert [shown(each) for each in found] == [refusal]
    assert await free(product) == before


@pytest.mark.parametrize("field", USED_UP)
async def test_where_the_last_number_is_somebodys_already_nothing_else_is_taken(product: Product, field: str) -> None:
    await with_server(product)
    (first,) = await product.creation.many([NewAccount("s")])
    assert isinstance(first, Account)
    of = {"name": 1, "username": 1, "address": int(first.address), "address_ipv6": 2, "mark": first.mark}
    await leave(product, (await scopes(product))[field], of[field])
    before = await free(product)
    found = await product.creation.many([NewAccount("s")])
    assert [shown(each) for each in found] == [(Conflict, *USED_UP[field])]
    assert await free(product) == before | {field: []}


async def test_an_id_that_somebody_has_is_drawn_anew(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    await with_server(product)
    ids = iter([5, 5, 6])
    monkeypatch.setattr(creation, "new_id", lambda: next(ids))
    found = [(await product.creation.many([NewAccount("s")]))[0] for _ in range(2)]
    assert [each.id for each in found if isinstance(each, Account)] == [5, 6]


async def test_of_values_that_all_belong_to_somebody_only_so_many_are_tried(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "ATTEMPTS", 3)
    await with_server(product)
    made = await product.creation.many([NewAccount("s")] * 3)
    await leave(product, ranges.PEERS, *range(1, 10))  # as after an edit of the database
    found = await product.creation.many([NewAccount("s"), NewAccount("s", name="bob")])
    assert [isinstance(each, Account) for each in (*made, *found)] == [True, True, True, False, True]
    assert shown(found[0])[:2] == (Conflict, "No free name, address or mark was found in 3 attempts")


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


async def test_who_hangs_up_while_he_waits_for_his_turn_gets_nothing(product: Product) -> None:
    await with_server(product)
    use = Creation(product.store)
    calls = use.one(NewAccount("s", name="gone"), lambda: True), use.one(NewAccount("s", name="here"))
    gone, here = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(gone, Conflict) and not isinstance(here, BaseException)
    assert [account.name for account in await direct.accounts(product.accounts)] == ["here"]


async def test_a_preshared_key_is_the_callers_or_made_for_him_or_none(product: Product) -> None:
    await with_server(product)
    own = Secret(base64.b64encode(bytes(range(32))).decode())
    found = await product.creation.many([NewAccount("s", preshared_key=key) for key in (own, GENERATE, None)])
    kept, made, none = (each.preshared_key.reveal() for each in found if isinstance(each, Account))
    assert (kept, len(base64.b64decode(made)), none) == (own.reveal(), 32, "")
