"""What holds for the whole installation: the time zone of its days, and the proof that the key is the right one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import date

from sqlalchemy import bindparam, delete, select

from gateway.errors import ConfigError, SealBroken
from gateway.store import keys, nodes, one_time_links
from gateway.store.tables import settings
from gateway.store.transaction import INSTALLATION, Transaction
from gateway.tuning import TUNABLE, Tuning

TIME_ZONE = "time_zone"
KEY_CHECK = "key_check"
IDENTITY = "identity"  # random; of this database and its copies, and of no other: see gateway/origin.py
CALENDAR = "calendar"  # see gateway/usage.py: "2026-11-26", or "2026-11-26 2031-03-01"
LINK_PAGE = "link_page"
TOLD = (IDENTITY, TIME_ZONE)  # to every node, with whatever it is told
DEFAULT_ZONE = "UTC"
SERIES = "gateway_series"  # of the certificates of gateways
WRITTEN = "written"  # when it was last seen that this database can be written to, Unix seconds
# What is sealed in it also tells how digests lie in the database: nobody can make it say "plain" without the key.
_KEY_CHECK_TEXT, _DIGESTS_ARE_PLAIN = "wirelane 2", "wirelane"
_SET = "set_by_api."  # and the name of a key of the file
_by_name = select(settings.c.value).where(settings.c.name == bindparam("setting"))


async def time_zone(tx: Transaction) -> str:
    return await _read(tx, TIME_ZONE) or DEFAULT_ZONE


async def set_time_zone(tx: Transaction, name: str) -> None:
    """Every node has to know: its agent decides when a day ends."""
    await tx.lock(INSTALLATION)
    if name == await time_zone(tx):
        return
    await _write(tx, TIME_ZONE, name)
    for node in await nodes.listed(tx):
        await nodes.next_revision(tx, node.id)


async def check_key(tx: Transaction) -> None:
    """Raises ConfigError when the key is not the one that this database was written with. Digests of a version of this
    program that knew plain ones only become keyed ones; a new database gets its identity."""
    await tx.lock(INSTALLATION)
    value = await _read(tx, KEY_CHECK)
    try:
        text = "" if value is None else tx.seal.open(bytes.fromhex(value), KEY_CHECK)
    except (SealBroken, ValueError):
        raise ConfigError(
            ["key_file: this is not the key that the database was written with; put back the one from your backup"]
        ) from None
    if text == _DIGESTS_ARE_PLAIN:
        await keys.key_digests(tx)
        await one_time_links.key_digests(tx)
    if text != _KEY_CHECK_TEXT:
        await _write(tx, KEY_CHECK, tx.seal.seal(_KEY_CHECK_TEXT, KEY_CHECK).hex())
    if not await identity(tx):
        await _write(tx, IDENTITY, uuid.uuid4().hex)


async def identity(tx: Transaction) -> str:
    return await _read(tx, IDENTITY) or ""


async def note_writing(tx: Transaction, now: float) -> None:
    """With its fraction: SQLite writes nothing where a value stays as it was."""
    statement = tx.insert(settings).values(name=WRITTEN, value=repr(now))
    await tx.run(statement.on_conflict_do_update(index_elements=["name"], set_={"value": repr(now)}))


async def series(tx: Transaction) -> int:
    return int(await _read(tx, SERIES) or 1)


async def begin_series(tx: Transaction) -> int:
    """Agents refuse certificates of the one before as soon as they have seen one of this."""
    await tx.lock(INSTALLATION)
    begun = await series(tx) + 1
    await _write(tx, SERIES, str(begun))
    return begun


async def calendar(tx: Transaction) -> tuple[date, date | None] | None:
    """None = nobody has looked at the clock yet."""
    found = [date.fromisoformat(text) for text in (await _read(tx, CALENDAR) or "").split()]
    return (found[0], found[1] if len(found) > 1 else None) if found else None


async def set_calendar(tx: Transaction, believed: date, leapt_to: date | None) -> None:
    await _write(tx, CALENDAR, " ".join(str(day) for day in (believed, leapt_to) if day))


async def set_by_api(tx: Transaction) -> dict[str, int]:
    """Of the values in gateway/tuning.py, those that the API set."""
    names = {f"{_SET}{name}": name for name in TUNABLE}
    rows = await tx.all(select(settings).where(settings.c.name.in_(names)))
    return {names[row.name]: int(row.value) for row in rows}


async def tuning(tx: Transaction, of_file: Tuning) -> Tuning:
    """What holds now."""
    return of_file.with_set(await set_by_api(tx))


async def tune(tx: Transaction, values: Mapping[str, int | None]) -> None:
    """None = what the file says holds again."""
    await tx.lock(INSTALLATION)
    for name, value in values.items():
        if value is None:
            await tx.run(delete(settings).where(settings.c.name == f"{_SET}{name}"))
        else:
            await _write(tx, f"{_SET}{name}", str(value))


async def link_page(tx: Transaction) -> dict[str, dict[str, str | bool]]:
    """What was set of it, by its groups. Sealed: it stands beside customers' keys, so a row that somebody else wrote
    is not shown."""
    value = await _read(tx, LINK_PAGE)
    try:
        found = json.loads(tx.seal.open(bytes.fromhex(value), LINK_PAGE)) if value else {}
    except (SealBroken, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


async def set_link_page(tx: Transaction, values: dict[str, dict[str, str | bool]]) -> None:
    await _write(tx, LINK_PAGE, tx.seal.seal(json.dumps(values), LINK_PAGE).hex())


async def _read(tx: Transaction, name: str) -> str | None:
    row = await tx.one(_by_name, {"setting": name})
    return str(row.value) if row is not None else None


async def _write(tx: Transaction, name: str, value: str) -> None:
    await tx.run(delete(settings).where(settings.c.name == name))
    await tx.run(settings.insert().values(name=name, value=value))
