"""Values to build desired states from, and a keeper without a disk. Keys are real base64 of 32 bytes."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import Any

from agent.model import Account, Address, Ikev2, Login, Secret, Server
from agent.objects import NO_COUNTERS
from agent.usage import Baseline, Used

EPOCH = "epoch-1"
RESOLVERS = IPv4Address("9.9.9.9"), IPv6Address("2620:fe::fe")
IKEV2 = Ikev2("certificate", Secret("its key"), "authority", "vpn.example.org", RESOLVERS)


def login(number: int, password: str = "secret") -> Login:
    return Login(f"user_{number}", Secret(password))


def key(number: int) -> str:
    return base64.b64encode(number.to_bytes(32, "big")).decode()


def server(number: int = 1, **changes: Any) -> Server:
    values: dict[str, Any] = {
        "name": f"s{number}",
        "interface": f"wg{number}",
        "private_key": Secret(key(900_000 + number)),
        "listen_port": 51820 + number,
        "address": IPv4Interface(f"10.0.{number}.1/24"),
    }
    return Server(**{**values, **changes})


def account(number: int, **changes: Any) -> Account:
    """Account number n of server 1: address 10.0.1.n, mark 98 + n (n modulo 100)."""
    values: dict[str, Any] = {
        "id": number,
        "name": f"a{number}",
        "server": "s1",
        "address": IPv4Address(f"10.0.1.{number % 100}"),
        "public_key": key(number),
        "mark": 98 + number % 100,
        "download": 20,
        "upload": 10,
    }
    return Account(**{**values, **changes})


class MemoryKeeper:
    """What agent/usage.py needs of a store, in memory. `days`: (account, day) -> total."""

    def __init__(self) -> None:
        self.baselines: dict[Address, Baseline] = {}
        self.days: dict[tuple[int, int], Used] = {}
        self.sampled_at: float | None = None
        self.counted_by = ""
        self.stamp = 0

    def expect(self, accounts: Iterable[Account]) -> None:
        """What the store does when it saves accounts."""
        for new in accounts:
            self.baselines.setdefault(new.address, Baseline(new.id, NO_COUNTERS, self.stamp))

    def load_baselines(self) -> dict[Address, Baseline]:
        return dict(self.baselines)

    def load_sampled_at(self) -> float | None:
        return self.sampled_at

    def load_counted_by(self) -> str:
        return self.counted_by

    def load_stamp(self) -> int:
        return self.stamp

    def save_counted_by(self, backend: str) -> None:
        self.counted_by = backend

    def load_recent(self) -> list[int]:
        return [account_id for account_id, _ in reversed(self.days)]

    def save_sample(
        self,
        baselines: Mapping[Address, Baseline],
        used: Mapping[int, Used],
        day: int,
        at: float,
        counted_by: str = "",
    ) -> None:
        self.counted_by = counted_by or self.counted_by
        self.baselines.update(baselines)
        for account_id, new in used.items():
            self.days[account_id, day] = self.days.get((account_id, day), Used()) + new
        self.sampled_at = at

    def save_baselines(self, baselines: Mapping[Address, Baseline]) -> None:
        self.baselines.update(baselines)

    def forget_baselines(self, addresses: Iterable[Address], stamp: int) -> None:
        self.stamp = stamp
        for address in addresses:
            self.baselines.pop(address, None)

    def total(self, account_id: int) -> Used:
        return sum((used for (owner, _), used in self.days.items() if owner == account_id), Used())
