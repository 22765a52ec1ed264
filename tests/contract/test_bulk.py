"""Import and export on both databases: thousands at once, again, beside others, and back."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface
from typing import Any

import pytest
import sqlalchemy as sa

from gateway import bulk
from gateway.account_file import Lines
from gateway.accounts import Accounts
from gateway.bulk import Counts, Refusal, export_accounts, import_accounts
from gateway.creation import Creation
from gateway.model import GENERATE, Account, AccountEdit, NewAccount, Secret, ServerValues
from gateway.store import Store, open_store
from gateway.store import accounts as account_rows
from gateway.store.tables import accounts as accounts_table
from gateway.store.tables import free_ranges
from tests.contract.test_concurrency import check_ranges
from tests.contract.test_store import NODE, use_cases
from tests.fakes import direct
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio

MANY = 2500


@dataclass
class Imported:
    counts: Counts
    refused: list[Refusal] = field(default_factory=list)

    @property
    def shown(self) -> tuple[int, int, int, int]:
        return self.counts.lines, self.counts.created, self.counts.there, self.counts.refused

    @property
    def texts(self) -> list[tuple[int, str, str]]:
        return [(each.line, each.field, each.text) for each in self.refused]


async def run_import(
    store: Store,
    text: str,
    format_name: str = "csv",
    progress: Callable[[Counts], None] = lambda counts: None,
    limit: int = 0,
) -> Imported:
    refused: list[Refusal] = []
    lines = Lines(io.BytesIO(text.encode()), format_name)
    counts = await import_accounts(store, Creation(store, limit), lines, refused.append, progress)
    return Imported(counts, refused)


async def exported(store: Store, format_name: str) -> str:
    parts: list[bytes] = []
    count = await export_accounts(store, format_name, parts.append, lambda done, total: None, lambda account: None)
    assert count == await store.read(account_rows.count)
    return b"".join(parts).decode()


async def ready(store: Store) -> Accounts:
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    accounts, servers = use_cases(store)
    await servers.create(ServerValues(name="s", address=IPv4Interface("10.50.0.1/16"), download=7))
    await servers.create(ServerValues(name="small", address=IPv4Interface("10.60.0.1/29")))
    return accounts


def rows(numbers: Iterable[int]) -> str:
    return "".join(f"c{n:05},s,{n % 100}\n" for n in numbers)


HEADER = "name,wg_name,b_download\n"


async def test_thousands_are_imported_and_a_second_run_finds_them_all(store: Store) -> None:
    accounts = await ready(store)
    seen: list[int] = []
    text = HEADER + rows(range(MANY))
    done = await run_import(store, text, progress=lambda counts: seen.append(counts.lines))
    assert done.shown == (MANY, MANY, 0, 0)
    assert seen == list(range(bulk.BATCH, MANY + 1, bulk.BATCH))
    made = await direct.accounts(accounts)
    assert [account.name for account in made] == [f"c{n:05}" for n in range(MANY)]
    assert [account.download for account in made[:3]] == [0, 1, 2]
    assert {account.mark for account in made} == set(range(100, 100 + MANY))
    for unique in ("id", "username", "address", "public_key"):
        assert len({getattr(account, unique) for account in made}) == MANY, unique
    await check_ranges(store)
    revision = (await direct.node(store, NODE)).revision
    assert (await run_import(store, text)).shown == (MANY, 0, MANY, 0)
    assert (await direct.node(store, NODE)).revision == revision and await direct.accounts(accounts) == made


async def test_one_revision_carries_a_whole_batch(store: Store) -> None:
    await ready(store)
    before = (await direct.node(store, NODE)).revision
    await run_import(store, HEADER + rows(range(3 * bulk.BATCH)))
    assert (await direct.node(store, NODE)).revision == before + 3


async def test_a_bad_line_spoils_only_itself_and_is_named(store: Store) -> None:
    accounts = await ready(store)
    await accounts.create(NewAccount("s", name="there", username="taken"))
    address = (await accounts.get("there")).address
    text = (
        "name,username,wg_name,allowed_IPs,b_download,b_upload,password,private_key,public_key,status\n"
        "good_1,,s,,,,,,,\n"
        "bad name,,s,,,,,,,\n"
        ",,s,,,,,,,\n"
        "x2,taken,s,,,,,,,\n"
        "x3,,nowhere,,,,,,,\n"
        f"x4,,s,{address}/32,,,,,,\n"
        "x5,,s,10.99.0.1,,,,,,\n"
        "x6,,s,1.2.3,,,,,,\n"
        "x7,,s,,10001,,,,,\n"
        "x8,,s,,,-1,,,,\n"
        "x9,,s,,,,\x07,,,\n"
        "x10,,s,,,,,AAAA,,\n"
        "x11,,s,,,,,,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=,\n"
        "x12,,s,,,,,,,off\n"
        '"open,,s,,,,,,,\n'
        "there,,s,,5,,,,,\n"
        "good_2,,small,,,,,,,disable\n"
    )
    done = await run_import(store, text)
    assert done.shown == (17, 2, 0, 15)
    names = {account.name for account in await direct.accounts(accounts)}
    assert names == {"there", "good_1", "good_2"}
    assert done.texts == [
        (3, "name", "Wrong name (only letters, numbers and '_', '-')"),
        (4, "name", bulk.NO_NAME),
        (5, "username", "The username is already in use"),
        (6, "wg_name", "Wireguard server not valid"),
        (7, "allowed_IPs", "IP address already in use"),
        (8, "allowed_IPs", "The IP address is not within the range of the wireguard server"),
        (9, "allowed_IPs", "Wrong IP format"),
        (10, "b_download", "Wrong b_download (only 0-10000)"),
        (11, "b_upload", "Wrong b_upload (only 0-10000)"),
        (12, "password", "Wrong password (only 1-128 printable characters)"),
        (13, "private_key", "Keys are invalid"),
        (14, "public_key", "Keys are invalid"),
        (15, "status", "Wrong status (only enable or disable)"),
        (16, "", "Malformed line (only a CSV line in UTF-8, quotes closed)"),
        (17, "name", "The name is already in use"),
    ]
    await check_ranges(store)


async def test_an_interrupted_import_goes_on_where_it_was(store: Store) -> None:
    accounts = await ready(store)
    text = HEADER + rows(range(4 * bulk.BATCH))
    reached = asyncio.Event()
    task = asyncio.create_task(run_import(store, text, progress=lambda counts: reached.set()))
    await reached.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    there = len(await direct.accounts(accounts))
    assert there and there % bulk.BATCH == 0 and there < 4 * bulk.BATCH
    assert (await run_import(store, text)).shown == (4 * bulk.BATCH, 4 * bulk.BATCH - there, there, 0)
    await check_ranges(store)


async def test_done_is_what_is_there_exactly_as_asked(store: Store) -> None:
    accounts = await ready(store)
    head = "name,wg_name,b_download,password,status\n"
    assert (await run_import(store, head + "a,s,5,secret,\n")).shown == (1, 1, 0, 0)
    await accounts.edit("a", AccountEdit(enabled=False))  # suspended since: nobody asked for it to be enabled
    for line, done in (
        ("a,s,5,secret,", True),
        ("a,s,,,", True),
        ("a,s,5,secret,disable", True),
        ("a,s,5,secret,enable", False),
        ("a,s,6,secret,", False),
        ("a,s,5,other,", False),
        ("a,small,5,secret,", False),
    ):
        again = await run_import(store, head + line + "\n")
        assert again.shown == (1, 0, int(done), int(not done)), line
        assert again.texts == ([] if done else [(2, "name", "The name is already in use")])
    assert not (await accounts.get("a")).enabled


async def test_a_preshared_key_is_imported_or_made_and_is_there_the_second_time(store: Store) -> None:
    accounts = await ready(store)
    given = Secret("FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=")
    head, lines = "name,wg_name,preshared_key\n", f"a,s,{given.reveal()}\nb,s,1\nc,s,0\nd,s,\n"
    assert (await run_import(store, head + lines)).shown == (4, 4, 0, 0)
    made = {account.name: account.preshared_key for account in await direct.accounts(accounts)}
    assert made["a"] == given and len(made["b"].reveal()) == 44 and not made["c"] and not made["d"]
    assert (await run_import(store, head + lines)).shown == (4, 0, 4, 0)
    wrong = await run_import(store, head + "a,s,0\nc,s,1\ne,s,abc\n")
    assert wrong.shown == (3, 0, 0, 3)
    assert [(line, field) for line, field, _ in wrong.texts] == [(2, "name"), (3, "name"), (4, "preshared_key")]


async def test_the_same_line_twice_is_one_account_and_another_one_of_its_name_is_refused(store: Store) -> None:
    await ready(store)
    done = await run_import(store, HEADER + "a,s,1\nb,s,2\na,s,1\na,s,3\n")
    assert done.shown == (4, 2, 1, 1)
    assert done.texts == [(5, "name", "The name is already in use")]


async def test_a_full_server_and_the_limit_of_accounts_are_kept(store: Store) -> None:
    await ready(store)
    text = HEADER + "".join(f"a{n},small,\n" for n in range(7)) + rows(range(5))
    done = await run_import(store, text, limit=8)
    assert done.shown == (12, 8, 0, 4)
    assert [text for _, _, text in done.texts] == [
        *["No free IP address left on the wireguard server"] * 2,
        *["VPN account limit exceeded"] * 2,
    ]
    await check_ranges(store)


async def test_a_rehearsal_tells_exactly_what_would_happen_and_changes_nothing(store: Store) -> None:
    accounts = await ready(store)
    await accounts.create(NewAccount("s", name="c00003", download=3))
    await accounts.create(NewAccount("s", name="c00004", download=1))
    # More than a batch: what earlier batches take must be seen by later ones.
    text = HEADER + rows(range(bulk.BATCH)) + "".join(f"d{n},small,\n" for n in range(7)) + "c00001,s,99\n"
    before, revision = await direct.accounts(accounts), (await direct.node(store, NODE)).revision
    async with store.rehearsal() as copy:
        rehearsed = await run_import(copy, text)
    assert await direct.accounts(accounts) == before and (await direct.node(store, NODE)).revision == revision
    real = await run_import(store, text)
    assert (rehearsed.shown, rehearsed.texts) == (real.shown, real.texts)
    assert real.shown == (bulk.BATCH + 8, bulk.BATCH + 3, 1, 4)
    await check_ranges(store)


@pytest.mark.parametrize("format_name", ["csv", "jsonl"])
async def test_an_export_is_imported_as_the_same_accounts(store: Store, format_name: str) -> None:
    accounts = await ready(store)
    await run_import(store, HEADER + rows(range(1200)))
    first = await accounts.get("c00000")
    await accounts.create(NewAccount("small", name="own_key", public_key=first.public_key, enabled=False))
    for name in ("c00000", "c00001", "c00002"):  # of these some are deleted below
        await accounts.edit(name, AccountEdit(preshared_key=GENERATE))
    before = await direct.accounts(accounts)
    text = await exported(store, format_name)
    assert (await run_import(store, text, format_name)).shown == (1201, 0, 1201, 0)
    for account in before[:1000:3]:
        await accounts.delete(account.name)
    await accounts.delete("own_key")
    assert (await run_import(store, text, format_name)).shown == (1201, 335, 866, 0)

    def bare(account: Account) -> Account:
        return replace(account, id=0, mark=0)

    assert list(map(bare, await direct.accounts(accounts))) == list(map(bare, before))
    await check_ranges(store)


async def test_names_that_could_be_generated_leave_the_others_free(store: Store) -> None:
    await ready(store)
    # Every second number, from the end: as many free ranges as accounts.
    names = [f"peer_{n}" for n in range(600, 0, -2)]
    text = "name,username,wg_name\n" + "".join(f"{name},{name.replace('peer', 'user')},s\n" for name in names)
    assert (await run_import(store, text)).shown == (300, 300, 0, 0)
    await check_ranges(store)
    made = await Creation(store).many([NewAccount("s")] * 302)
    assert [each.name for each in made if isinstance(each, Account)] == [
        *(f"peer_{n}" for n in range(1, 600, 2)),
        *("peer_601", "peer_602"),
    ]
    await check_ranges(store)


async def test_a_gateway_creates_while_an_import_runs(store: Store, database_url: str) -> None:
    accounts = await ready(store)
    other = await open_store(database_url, KEY)
    try:
        importing = asyncio.create_task(run_import(other, HEADER + rows(range(1500))))
        count, slowest = 0, 0.0
        while not importing.done():
            started = asyncio.get_running_loop().time()
            await accounts.create(NewAccount("s"))
            slowest = max(slowest, asyncio.get_running_loop().time() - started)
            count += 1
        assert (await importing).shown == (1500, 1500, 0, 0)
        assert count > 3 and slowest < 5
        assert len(await direct.accounts(accounts)) == 1500 + count
        await check_ranges(store)
    finally:
        await other.close()


async def test_what_a_create_reads_does_not_grow_with_the_accounts(store: Store) -> None:
    """The plans of the statements that every create runs: none of them goes through a whole table."""
    accounts = await ready(store)
    # Every second number is free: as many ranges as accounts.
    lines = "".join(f"peer_{n},user_{n},s,10.50.{n // 250}.{n % 250}\n" for n in range(4, 4000, 2))
    assert (await run_import(store, "name,username,wg_name,allowed_IPs\n" + lines)).counts.created == 1998
    prefix = "EXPLAIN QUERY PLAN " if (await store.read(_is_sqlite)) else "EXPLAIN "
    statements: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not statement.startswith("BEGIN"):
            statements.append((statement, parameters[0] if many else parameters))

    engine = store._engine._writer.sync_engine
    if prefix == "EXPLAIN ":  # its planner needs to know that the tables have grown
        await store.change(lambda tx: tx.run(sa.text("ANALYZE")))
    sa.event.listen(engine, "before_cursor_execute", note)
    await accounts.create(NewAccount("s"))
    await accounts.create(NewAccount("s", name="peer_9", username="user_99", address=IPv4Interface("10.50.1.1").ip))
    sa.event.remove(engine, "before_cursor_execute", note)
    large = {accounts_table.name, free_ranges.name}
    plans = [await _plan(store, prefix + statement, parameters) for statement, parameters in statements]
    assert len(plans) > 10
    scans = [line for plan in plans for line in plan if line.startswith("SCAN") or "Seq Scan" in line]
    assert [line for line in scans if large & set(line.replace("(", " ").split())] == []


async def _is_sqlite(tx: Any) -> bool:
    return bool(tx.is_sqlite)


async def _plan(store: Store, statement: str, parameters: Any) -> list[str]:
    async def work(tx: Any) -> list[str]:
        raw = await tx.connection.exec_driver_sql(statement, parameters or ())
        return [str(row[-1]).strip() for row in raw.all()]

    return await store.change(work)
