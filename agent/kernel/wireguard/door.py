"""The WireGuard door: its words, and what its two implementations have in common.

`genetlink` speaks to the kernel's own WireGuard, `uapi` to a userspace process. Both fit `WireGuard` below
and change peers one by one: never replace-all, so that nobody's session is disturbed by another's change. `links` and
`peers` use them; which one a link needs is told by its kind, so a link made by the other one is used as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, Protocol

from agent.errors import KernelError
from agent.model import NO_SECRET, Secret
from agent.objects import PeerState

Mode = Literal["kernel", "userspace"]


class Absent(KernelError):
    """No WireGuard answers under this name: no such link, another kind of link, or its process is gone."""


class Refused(KernelError):
    """WireGuard refused something in a message; what stood before it in the message is done."""


class PortBusy(KernelError):
    """Another program has the UDP port."""

    def __init__(self, interface: str, port: int) -> None:
        super().__init__(
            f"{interface} cannot listen on UDP port {port}: another program has it; "
            "stop that program or give the server another port"
        )


@dataclass(frozen=True, slots=True)
class Device:
    """A link as WireGuard knows it."""

    private_key: Secret  # empty = none yet
    listen_port: int  # 0 = none yet
    has_peers: bool


@dataclass(frozen=True, slots=True)
class HeldPeer:
    """A peer as WireGuard holds it. `state.address` is None where the allowed IPs are not exactly one address,
    or one of each family."""

    state: PeerState
    preshared: Secret = NO_SECRET  # base64; empty = none


@dataclass(frozen=True, slots=True)
class PeerChange:
    """What one peer shall be: gone (`address` is None), or there with these allowed IPs and no others.

    `preshared`: a key that it shall have. `reset`: it may be there already, with a keepalive or another preshared key
    that somebody has given it: both become right, none is none. `anew`: its session ends.

    `endpoint`: where its client was; "" = leave it.
    """

    public_key: str
    address: IPv4Address | None
    reset: bool = False
    preshared: Secret = NO_SECRET
    endpoint: str = ""
    anew: bool = False
    address_ipv6: IPv6Address | None = None


class WireGuard(Protocol):
    """All calls block, with a deadline, and raise KernelError; `Absent` where nothing answers under that name."""

    def create(self, interface: str) -> None:
        """Makes the link, down and unconfigured. It must not exist."""

    def remove(self, interface: str) -> None:
        """Removes the link and what runs it; absent is removed."""

    def read_device(self, interface: str) -> Device: ...

    def configure(self, interface: str, *, private_key: Secret | None = None, listen_port: int | None = None) -> None:
        """Changes key or port in place; None = as it is; port 0 = any free one. Raises PortBusy."""

    def read_peers(self, interface: str, only: Collection[str] | None = None) -> list[HeldPeer]:
        """All of them, whole, however many messages they take; or those with these public keys, which costs less."""

    def set_peers(self, interface: str, changes: Sequence[PeerChange]) -> dict[str, KernelError]:
        """Applies the changes in their order; answers an error for each public key that was refused."""

    def call_peers(self, interface: str, public_keys: Sequence[str]) -> None:
        """Sends each of these, which are there and have an endpoint, a handshake: a keepalive is switched on and off
        again, and WireGuard sends one at once. At most as many as go in one message."""


def set_in_batches(
    changes: Sequence[PeerChange], size: int, send: Callable[[Sequence[PeerChange]], None]
) -> dict[str, KernelError]:
    """Sends the changes, at most `size` at once, and finds out which ones are refused.

    Both implementations stop at the first bad peer of a message and do not say which one it was. Every change may be
    sent twice, so a refused batch is halved until the guilty one is alone. Any other error ends it for all the rest.
    """
    errors: dict[str, KernelError] = {}
    waiting = [changes[start : start + size] for start in range(0, len(changes), size)][::-1]
    while waiting:
        batch = waiting.pop()
        try:
            send(batch)
        except Refused as error:
            if len(batch) == 1:
                errors[batch[0].public_key] = error
            else:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
        except KernelError as error:
            errors |= dict.fromkeys(_keys([batch, *waiting]), error)
            break
    return errors


def _keys(batches: Iterable[Sequence[PeerChange]]) -> list[str]:
    return [change.public_key for batch in batches for change in batch]
