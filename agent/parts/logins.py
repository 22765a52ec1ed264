"""Logins: the way in of IKEv2, the second kind of tunnel."""

from __future__ import annotations

from agent.model import IKEV2_DEVICE, Account, Server
from agent.objects import LoginRow
from agent.parts.part import AccountPart, Place


def _into(held: dict[str, LoginRow], account: Account, server: Server, place: Place) -> None:
    if server.ikev2 and account.login:
        login, ipv6 = account.login, account.address_ipv6
        dns = tuple(one for one in server.ikev2.dns if one.version == 4 or ipv6)
        given = login.username, login.password, account.address, dns, account.id
        held[login.username] = LoginRow(*given, address_ipv6=ipv6)


LOGINS = AccountPart[str, LoginRow](
    name="logins",
    noun="login",
    device=lambda key: IKEV2_DEVICE,
    detail=lambda one: " ".join([one.username, *map(str, one.addresses)]),
    goes_first=True,  # from then on its account passes no packet
    into=_into,
    owner=lambda desired, username: desired.by_username.get(username, 0),
    leads=True,  # to the rules of its address
)
