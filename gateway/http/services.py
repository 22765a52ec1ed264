"""What the HTTP door needs from the house: the use cases it calls and its settings. Made by gateway/wiring."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gateway.accounts import Accounts
    from gateway.enrolment import Enrolment
    from gateway.filter_rules import FilterRules
    from gateway.ikev2 import Ikev2Service
    from gateway.keys import Keys
    from gateway.one_time_links import OneTimeLinks
    from gateway.port_forwards import PortForwards
    from gateway.servers import Servers
    from gateway.system import System

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
MAX_BODY_BYTES = 65_536  # a v1 body is well below 2 kB


@dataclass(frozen=True, slots=True)
class Services:
    """`ping`: returns when the store answers (for /healthz)."""

    accounts: Accounts
    servers: Servers
    one_time_links: OneTimeLinks
    keys: Keys
    system: System
    enrolment: Enrolment
    ikev2: Ikev2Service
    port_forwards: PortForwards
    filter_rules: FilterRules
    ping: Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class HttpSettings:
    public_url: str  # "https://vpn.example.com"
    http_status: Literal["always_200", "semantic"] = "always_200"  # of the errors that calls answer with
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    metrics_networks: tuple[IPv4Network | IPv6Network, ...] = LOOPBACK  # who may read /metrics without a key
    max_body_bytes: int = MAX_BODY_BYTES
    tabs: bool = False  # indent configuration texts as the original panel did
    time_zone: str = "UTC"  # IANA; of the times in /wireguard/online

    @property
    def semantic(self) -> bool:
        return self.http_status == "semantic"
