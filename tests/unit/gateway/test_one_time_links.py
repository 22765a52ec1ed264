"""gateway/one_time_links.py. That a link opens once, however many try, is shown on both databases in
tests/contract."""

from __future__ import annotations

import re

import pytest

from gateway.errors import NotFound
from gateway.model import Account, AccountEdit, NewAccount, ServerValues
from gateway.one_time_links import OneTimeLinks
from tests.fakes.product import Product

pytestmark = pytest.mark.anyio


async def opened(links: OneTimeLinks, key: str) -> Account | None:
    """By somebody who gets the page."""
    lease = await links.lease(key)
    return lease.account if lease is not None and await links.use_up(lease) else None


async def test_every_call_makes_another_link_and_looking_does_not_use_it_up(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value
    account = (await product.accounts.create(NewAccount(server=server.name))).value
    first, second = [await product.one_time_links.create(account.name) for _ in range(2)]
    assert first != second and re.fullmatch(r"[0-9a-f]{80}", first)
    for _ in range(3):
        assert await product.one_time_links.valid(first)
    assert await opened(product.one_time_links, first) == account
    assert await opened(product.one_time_links, first) is None
    assert not await product.one_time_links.valid(first)
    assert await opened(product.one_time_links, second) == account


async def test_unknown_links_are_not_relevant_and_unknown_accounts_not_found(product: Product) -> None:
    for key in ("0" * 80, "", "x", "é"):
        assert not await product.one_time_links.valid(key)
        assert await opened(product.one_time_links, key) is None
    with pytest.raises(NotFound, match=r"^Account not found$"):
        await product.one_time_links.create("nobody")


async def test_who_guesses_links_never_takes_the_one_writer(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(*_: object) -> None:
        raise AssertionError("a change, for a link that there is not")

    monkeypatch.setattr(product.store, "change", busy)
    assert await product.one_time_links.lease("0" * 80) is None


async def test_a_link_shows_the_account_as_it_is_when_it_is_opened(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value
    await product.accounts.create(NewAccount(server=server.name))
    key = await product.one_time_links.create("peer_1")
    edited = (await product.accounts.edit("peer_1", AccountEdit(download=9))).value
    assert await opened(product.one_time_links, key) == edited
