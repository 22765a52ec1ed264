"""gateway/store/seal.py: what lies in the database, and what it is bound to."""

from __future__ import annotations

import time

import pytest

from gateway.errors import ConfigError, SealBroken
from gateway.store.seal import Seal

SEAL = Seal(bytes(range(32)))


@pytest.mark.parametrize("text", ["", "x", "FE*37#L2WC", "ж" * 500])
def test_what_was_sealed_is_opened_at_its_place(text: str) -> None:
    value = SEAL.seal(text, "accounts.password.7")
    assert SEAL.open(value, "accounts.password.7") == text
    assert len(value) == 1 + 12 + len(text.encode()) + 16
    assert len(text) < 4 or text.encode() not in value  # a letter alone may well be among random bytes


def test_the_same_text_never_looks_the_same_twice() -> None:
    assert len({SEAL.seal("x", "a.b.1") for _ in range(100)}) == 100


@pytest.mark.parametrize("place", ["accounts.password.8", "accounts.private_key.7", "servers.password.7"])
def test_a_value_does_not_open_at_another_place(place: str) -> None:
    with pytest.raises(SealBroken, match=place):
        SEAL.open(SEAL.seal("x", "accounts.password.7"), place)


def test_a_changed_value_does_not_open() -> None:
    value = SEAL.seal("secret", "a.b.1")
    for position in range(len(value)):
        changed = bytearray(value)
        changed[position] ^= 1
        with pytest.raises(SealBroken) as caught:
            SEAL.open(bytes(changed), "a.b.1")
        assert "secret" not in str(caught.value)
    for short in (b"", value[:1], value[:13], value[:-1]):
        with pytest.raises(SealBroken):
            SEAL.open(short, "a.b.1")


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(SealBroken):
        Seal(bytes(32)).open(SEAL.seal("x", "a.b.1"), "a.b.1")


def test_a_key_is_32_bytes() -> None:
    with pytest.raises(ConfigError, match="must be 32 bytes, it is 31"):
        Seal(bytes(31))


def test_ten_thousand_accounts_are_opened_in_a_moment() -> None:
    """The bar is 150 ms for 20,000 values on a quiet machine; here it only must not be of another order."""
    values = [
        (SEAL.seal("GNuP0siryMimPSuF7Hnmw0D7gY7FXzoY6IgUmt1uuXc=", f"a.k.{i}"), f"a.k.{i}") for i in range(20_000)
    ]
    start = time.process_time()
    for value, place in values:
        SEAL.open(value, place)
    assert time.process_time() - start < 1.5
