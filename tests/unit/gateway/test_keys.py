"""gateway/keys.py: hashes that are bound to addresses, shown once, and revoked within seconds."""

from __future__ import annotations

import re
from ipaddress import ip_address

import pytest

from gateway.errors import Conflict, InvalidValue, NotFound
from gateway.keys import CACHE_SECONDS, Keys, Verdict
from gateway.store import open_store
from tests.fakes.product import KEY, Product

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_hash_works_from_its_addresses_only(product: Product) -> None:
    keys = product.keys
    secret = await keys.add("billing", ["192.0.2.10", "198.51.100.0/24", "2001:db8::/32", "::ffff:10.7.0.0/112"])
    access_hash = secret.reveal()
    assert re.fullmatch(r"[0-9a-f]{80}", access_hash) and access_hash not in repr(secret)
    for address, allowed in (
        ("192.0.2.10", True),
        ("::ffff:192.0.2.10", True),
        ("198.51.100.77", True),
        ("2001:db8:1::5", True),
        ("192.0.2.11", False),
        ("::ffff:192.0.2.11", False),
        ("2001:db9::1", False),
        ("10.7.200.1", True),
        ("::ffff:10.7.0.1", True),
        ("10.8.0.1", False),
        ("127.0.0.1", False),
    ):
        assert (await keys.judged(access_hash, ip_address(address))).is_allowed is allowed, address
    for wrong in ("", "0" * 80, access_hash[:-1], access_hash.upper(), "é"):
        assert not (await keys.judged(wrong, ip_address("192.0.2.10"))).is_allowed


async def test_each_key_is_bound_to_its_own_addresses(product: Product) -> None:
    one = (await product.keys.add("one", ["192.0.2.1"])).reveal()
    two = (await product.keys.add("two", ["192.0.2.2"])).reveal()
    keys = Keys(product.store)
    assert (await keys.judged(one, ip_address("192.0.2.1"))).is_allowed
    assert (await keys.judged(two, ip_address("192.0.2.2"))).is_allowed
    assert not (await keys.judged(one, ip_address("192.0.2.2"))).is_allowed


async def test_a_key_is_listed_without_its_hash_and_its_name_is_used_once(product: Product) -> None:
    await product.keys.add("billing", ["10.0.0.0/8", "192.0.2.1"])
    (listed,) = await product.keys.list()
    assert (listed.name, listed.networks) == ("billing", ("10.0.0.0/8", "192.0.2.1/32"))
    with pytest.raises(Conflict, match="a key billing already"):
        await product.keys.add("billing", ["192.0.2.2"])
    await product.keys.revoke("billing")
    assert await product.keys.list() == []
    with pytest.raises(NotFound, match="no key billing"):
        await product.keys.revoke("billing")


@pytest.mark.parametrize("networks", [[], ["anywhere"], ["10.0.0.1/8"], ["10.0.0.0/33"], ["fe80::1%eth0"]])
async def test_a_key_without_sane_addresses_is_refused(product: Product, networks: list[str]) -> None:
    with pytest.raises(InvalidValue):
        await product.keys.add("billing", networks)
    assert await product.keys.list() == []


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ä", "a\n"])
async def test_a_key_has_a_plain_name(product: Product, name: str) -> None:
    with pytest.raises(InvalidValue, match="Wrong name of a key"):
        await product.keys.add(name, ["10.0.0.1"])


async def test_a_revoked_key_ends_within_seconds_and_calls_cost_no_sql(product: Product, database: str) -> None:
    clock = Clock()
    store = await open_store(database, KEY)
    keys = Keys(store, now=clock)
    client = ip_address("192.0.2.1")
    access_hash = (await product.keys.add("billing", ["192.0.2.1"])).reveal()
    assert (await keys.judged(access_hash, client)).is_allowed
    await product.keys.revoke("billing")
    clock.now += CACHE_SECONDS - 0.1
    await store.close()
    assert (await keys.judged(access_hash, client)).is_allowed, "known for a few seconds, without the database"
    clock.now += 0.2
    assert not (await keys.judged(access_hash, client)).is_allowed
    await store.close()


async def test_verdict_names_the_key_and_the_reason(product: Product) -> None:
    right = (await product.keys.add("billing", ["192.0.2.1"])).reveal()
    clock = Clock()
    keys, near, far = Keys(product.store, now=clock), ip_address("192.0.2.1"), ip_address("192.0.2.2")
    assert await keys.judged(right, near) == Verdict(True, "billing", "")
    assert await keys.judged(right, far) == Verdict(False, "billing", "wrong-address")
    assert await keys.judged("0" * 80, near) == Verdict(False, "", "unknown-key")
    await product.keys.revoke("billing")
    again = (await product.keys.add("billing", ["192.0.2.1"])).reveal()
    clock.now += CACHE_SECONDS
    assert await keys.judged(right, near) == Verdict(False, "billing", "revoked-key")
    assert await keys.judged(again, near) == Verdict(True, "billing", "")
