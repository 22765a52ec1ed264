"""Marks: the two rules that mark and count what goes to an address of an account and comes from it."""

from __future__ import annotations

from agent.model import Account, Address, Server
from agent.objects import Mark
from agent.parts.part import AccountPart, Place


def _into(held: dict[Address, Mark], account: Account, server: Server, place: Place) -> None:
    for address in account.addresses:
        held[address] = Mark(address, account.mark, account.id)


def _detail(one: Mark) -> str:
    return f"{one.address} 0x{one.mark:x}" if one.mark else "rules that are damaged or nobody's"


MARKS = AccountPart[Address, Mark](
    name="marks",
    noun="mark",
    device=lambda key: "",
    detail=_detail,
    into=_into,
    owner=lambda desired, address: desired.by_address.get(address, 0),
    leads=True,  # to its class
)
