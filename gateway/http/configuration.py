"""What a customer puts into the app: the account's configuration, as a text and as a picture. v1/ and pages/ show the
same one. What cannot be decrypted is not shown: half of it would be taken for the whole."""

from __future__ import annotations

import asyncio

from gateway import profile
from gateway.errors import Conflict
from gateway.http.services import HttpSettings, Services
from gateway.model import Account, Server


async def config_text(services: Services, settings: HttpSettings, account: Account) -> str:
    """Raises Conflict: a secret is unreadable. InvalidValue: nobody ever said where clients connect to."""
    refuse_unreadable(account)
    server = await services.servers.get(account.server)
    endpoint, mtu = await services.servers.endpoint(server), await services.servers.node_mtu(server)
    return profile.config_text(account, server, endpoint, settings.tabs, mtu)


async def config_picture(text: str) -> bytes:
    """PNG. Drawing takes tens of milliseconds: not on the loop's time."""
    return await asyncio.to_thread(profile.config_qr, text)


def unreadable(of: Account | Server) -> str:
    """What is wrong with it; "" = nothing."""
    names = " and ".join(column.replace("_", " ") for column in of.unreadable)
    kind = "account" if isinstance(of, Account) else "server"
    return names and f"The {names} of {kind} {of.name} cannot be decrypted (the database was edited or damaged)"


def refuse_unreadable(of: Account | Server) -> None:
    """Raises Conflict."""
    if of.unreadable:
        raise Conflict(unreadable(of))
