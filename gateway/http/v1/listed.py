"""An answer about all accounts, page by page: of ten thousand, no other call has to wait for the whole list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.http.envelope import Encoded, encoded
from gateway.http.services import Services
from gateway.model import Account


async def all_accounts(services: Services, spelled: Callable[[Account], list[dict[str, str]]]) -> Encoded:
    """A list of what `spelled` makes of each, in the order of their names."""
    pages: list[bytes] = []

    def encode(page: Sequence[Account]) -> None:
        if found := [one for account in page for one in spelled(account)]:
            pages.append(encoded(found)[1:-1])

    await services.accounts.visit(encode)
    return Encoded(b"[%b]" % b",".join(pages))
