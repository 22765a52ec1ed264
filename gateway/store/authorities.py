"""Rows of authorities: who signs certificates, and who else is trusted. Key and certificate are sealed together, so
nobody who can only write to the database makes gateways or agents trust another one.

Made at the first use, by one gateway: the others wait for its lock and find it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, select, update

from gateway.authority import Authority, new_authority
from gateway.errors import Conflict, NotFound
from gateway.model import Secret
from gateway.store import settings
from gateway.store.tables import authorities as rows
from gateway.store.transaction import INSTALLATION, Transaction

PIN_DIGITS = 16  # that people are shown
_MARK = "-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Trust:
    """`signs`: who signs what is new. `others`: who is trusted besides, while one takes the place of another. `series`:
    of the certificates of gateways; those of earlier ones are refused."""

    signs: Authority
    others: tuple[Authority, ...] = ()
    series: int = 1

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """PEM, of all of them."""
        return (self.signs.certificate, *(other.certificate for other in self.others))

    @property
    def pins(self) -> frozenset[str]:
        return frozenset(one.pin for one in (self.signs, *self.others))

    def of(self, pin: str) -> Authority | None:
        return next((one for one in (self.signs, *self.others) if one.pin == pin), None)


async def listed(tx: Transaction) -> Trust | None:
    """None = there is none yet. Raises SealBroken."""
    found = await tx.all(select(rows).order_by(rows.c.created, rows.c.pin))
    signing = [row for row in found if row.signs]
    if not signing:
        return None
    others = tuple(_opened(tx, row) for row in found if row is not signing[-1])
    return Trust(_opened(tx, signing[-1]), others, await settings.series(tx))


async def ensured(tx: Transaction, now: datetime) -> Trust:
    """Raises SealBroken."""
    await tx.lock(INSTALLATION)
    return await listed(tx) or await _begun(tx, now)


async def _begun(tx: Transaction, now: datetime) -> Trust:
    made = new_authority(now)
    await add(tx, made, now, signs=True)
    return Trust(made)


async def add(tx: Transaction, authority: Authority, now: datetime, *, signs: bool) -> None:
    text = authority.key.reveal() + authority.certificate.decode()
    sealed = tx.seal.seal(text, _place(authority.pin))
    values = {"pin": authority.pin, "sealed": sealed, "created": int(now.timestamp()), "signs": signs}
    await tx.run(rows.insert().values(values))


async def rows_of(tx: Transaction) -> list[Row[Any]]:
    """The oldest first: pin, created (Unix seconds), signs."""
    return list(await tx.all(select(rows.c.pin, rows.c.created, rows.c.signs).order_by(rows.c.created, rows.c.pin)))


async def use(tx: Transaction, pin: str) -> None:
    """It signs from now on; who did is trusted besides. `pin`: its beginning. Raises NotFound, Conflict."""
    await tx.lock(INSTALLATION)
    found = await _found(tx, pin)
    await tx.run(update(rows).values(signs=rows.c.pin == found.pin))


async def drop(tx: Transaction, pin: str) -> None:
    """Nobody trusts it any more. `pin`: its beginning. Raises NotFound, Conflict."""
    await tx.lock(INSTALLATION)
    found = await _found(tx, pin)
    if found.signs:
        raise Conflict(f"The authority {found.pin[:PIN_DIGITS]} signs; let another one sign first")
    await tx.run(delete(rows).where(rows.c.pin == found.pin))


async def _found(tx: Transaction, pin: str) -> Row[Any]:
    found = [row for row in await rows_of(tx) if pin and row.pin.startswith(pin)]
    if not found:
        raise NotFound(f"There is no authority {pin}")
    if len(found) > 1:
        raise Conflict(f"There are {len(found)} authorities {pin}...: give more digits")
    return found[0]


def _opened(tx: Transaction, row: Row[Any]) -> Authority:
    key, mark, certificate = tx.seal.open(row.sealed, _place(row.pin)).partition(_MARK)
    return Authority((mark + certificate).encode(), Secret(key))


def _place(pin: str) -> str:
    return f"authorities.sealed.{pin}"
