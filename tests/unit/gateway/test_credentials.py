"""The gateway's own certificate: when there is one, when it is another, and what a database that is away does to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from gateway.authority import GATEWAYS, new_authority
from gateway.credentials import OwnCredentials
from gateway.errors import DatabaseUnavailable
from gateway.store import authorities, settings
from tests.fakes.product import Product

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 27, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


async def test_without_an_authority_there_is_none_and_none_is_made(product: Product) -> None:
    own = OwnCredentials(product.store)
    await own.look()
    assert own.current is None
    assert await product.store.read(authorities.listed) is None


async def test_it_is_renewed_each_day_and_never_runs_out(product: Product) -> None:
    clock = Clock()
    own = OwnCredentials(product.store, clock)
    await product.store.change(lambda tx: authorities.ensured(tx, clock.now))
    seen = []
    for _ in range(24 * 5):
        await own.look()
        assert own.current is not None
        left = x509.load_pem_x509_certificate(own.current.certificate).not_valid_after_utc - clock.now
        assert left >= timedelta(days=3)
        if own.current not in seen:
            seen.append(own.current)
        clock.now += timedelta(hours=1)
    assert len(seen) == 5
    assert len({each.key.reveal() for each in seen}) == 5


async def test_a_clock_that_goes_back_makes_a_new_one(product: Product) -> None:
    clock = Clock()
    own = OwnCredentials(product.store, clock)
    await product.store.change(lambda tx: authorities.ensured(tx, clock.now))
    clock.now += timedelta(days=30)
    await own.look()
    ahead = own.current
    clock.now -= timedelta(days=30)
    await own.look()
    assert own.current is not None and own.current is not ahead
    assert x509.load_pem_x509_certificate(own.current.certificate).not_valid_before_utc < clock.now


async def test_another_authority_is_trusted_at_the_next_look(product: Product) -> None:
    own, now = OwnCredentials(product.store), datetime.now(UTC)
    first = await product.store.change(lambda tx: authorities.ensured(tx, now))
    await own.look()
    before, second = own.current, new_authority(now)
    await own.look()
    assert own.current is before and before is not None
    assert before.authorities == first.signs.certificate
    await product.store.change(lambda tx: authorities.add(tx, second, now, signs=False))
    await own.look()
    assert own.current is not None
    assert own.current.authorities == first.signs.certificate + second.certificate


async def test_a_database_that_is_away_takes_nothing_away(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    own = OwnCredentials(product.store)
    await product.store.change(lambda tx: authorities.ensured(tx, datetime.now(UTC)))
    await own.look()
    before = own.current

    async def away(_: object) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(product.store, "read", away)
    with pytest.raises(DatabaseUnavailable):
        await own.look()
    assert own.current is before is not None


async def test_revoked_are_all_that_there_were(product: Product) -> None:
    first, second = OwnCredentials(product.store), OwnCredentials(product.store)
    await product.store.change(lambda tx: authorities.ensured(tx, datetime.now(UTC)))
    for each in (first, second):
        await each.look()
        assert series_of(each) == 1
    assert await product.store.change(settings.begin_series) == 2
    for each in (first, second):
        await each.look()
        assert series_of(each) == 2


def series_of(own: OwnCredentials) -> int:
    assert own.current is not None
    names = x509.load_pem_x509_certificate(own.current.certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    (name,) = names.value.get_values_for_type(x509.DNSName)
    return int(name.removesuffix(f".{GATEWAYS}").rpartition(".")[2])
