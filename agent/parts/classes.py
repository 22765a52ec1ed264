"""Classes: an account's rate on each device by which its packets leave. None where the rate is unlimited."""

from __future__ import annotations

from agent.desired import Desired
from agent.model import Account, Server, mark_of, minor
from agent.objects import Class, ClassKey
from agent.parts.part import AccountPart, Place


def _into(held: dict[ClassKey, Class], account: Account, server: Server, place: Place) -> None:
    # The egress of its tunnels is the client's download, the uplink's egress its upload.
    number = minor(account.mark)
    for device in server.devices if account.download else ():
        held[device, number] = Class(device, number, account.download, account.id)
    if account.upload:
        held[place.uplink, number] = Class(place.uplink, number, account.upload, account.id)


def _detail(one: Class) -> str:
    return f"{one.device} 1:{one.minor:x} " + (f"{one.rate} Mbit/s" if one.rate > 0 else "not as it should be")


def _owner(desired: Desired, key: ClassKey) -> int:
    return desired.by_mark.get(mark_of(key[1]), 0)


CLASSES = AccountPart[ClassKey, Class](
    name="classes", noun="class", device=lambda key: key[0], detail=_detail, into=_into, owner=_owner
)
