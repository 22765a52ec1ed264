"""Logins: the way in of IKEv2, the second kind of tunnel."""

from __future__ import annotations

from agent.model import IKEV2_DEVICE, Account, Server
from agent.objects import LoginRow
from agent.parts.part import AccountPart, Place


def _into(held: dict[str, LoginRow], account: Account, server: Server, place: Place) -> None:
    if server.ikev2 and account.login:
        login = account.login
        held[login.username] = LoginRow(login.username, login.password, account.address, server.ikev2.dns, account.id)


LOGINS = AccountPart[str, LoginRow](
    name="logins",
    noun="login",
    device=lambda key: IKEV2_DEVICE,
    detail=lambda one: f"{one.username} {one.address}",
    goes_first=True,  # from then on its account passes no packet
    into=_into,
    owner=lambda desired, username: desired.by_username.get(username, 0),
    leads=True,  # to the rules of its address
)
