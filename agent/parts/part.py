"""What a part of the kernel is, as a value: one kind of object that a server or an account is made of.

A part says what its objects are called, on which device they are, whose they are, what a server or an account wants of
them, and when they go. How Linux makes them is its door's (doors.py); the order of a pass is read from the list of
parts (__init__.py). PURE: no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from agent.desired import Desired
from agent.model import DEFAULT_MTU, Account, Server
from agent.objects import NAT_PORTS

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the objects are wanted. `mtu`: of links whose server names none; bytes. `nowhere`: names of servers whose
    accounts have no way out (misfits.py). `nat_ports`: of connections of accounts on the uplink."""

    uplink: str
    mtu: int = DEFAULT_MTU
    nowhere: Collection[str] = ()
    nat_ports: tuple[int, int] = NAT_PORTS


@dataclass(frozen=True, eq=False, kw_only=True)
class Part(Generic[K, V]):
    """`name`: of its door, and in the log. `noun`: of one object, for people. `device`: what an object with this key is
    on; "" = on none. `detail`: what tells an object from others of its kind, never a key of anybody.

    `goes_first`: it lets somebody in, or holds what another one needs, so it goes before anything is built.
    """

    name: str
    noun: str
    device: Callable[[K], str]
    detail: Callable[[V], str]
    goes_first: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class ServerPart(Part[K, V]):
    """`into`: adds what a server wants. Where one of its objects fails, nothing is built on that device.
    `comes_last`: it lets somebody in, so it is built when all else stands."""

    into: Callable[[dict[K, V], Server, Place], None]
    comes_last: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class AccountPart(Part[K, V]):
    """`into`: adds what an account wants that is switched on. `owner`: whose an object is, by its key: the account's
    id; 0 = nobody's. `leads`: it leads packets to other objects of its account, so it does not change when one of those
    has failed."""

    into: Callable[[dict[K, V], Account, Server, Place], None]
    owner: Callable[[Desired, K], int]
    leads: bool = False
