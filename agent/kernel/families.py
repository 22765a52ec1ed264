"""The marks of both families behind one door: IPv4's by the backend of the host, IPv6's by nftables whichever that is.

Owns nothing. A host whose accounts have no IPv6 is asked for no more than the names of its nftables tables, in a full
reading and a sample. Called by the reconciler and the sampler, who know addresses and no families.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.doors import MarksDoor, MovableMarks
from agent.errors import KernelError
from agent.model import Address
from agent.objects import Counters, Diff, Mark, Scope


class MarksOfBoth:
    def __init__(self, ipv4: MarksDoor, ipv6: MovableMarks) -> None:
        self._ipv4 = ipv4
        self._ipv6 = ipv6

    def read(self, scope: Scope) -> dict[Address, Mark]:
        found = self._ipv4.read(scope)
        return {**found, **self._ipv6.read(scope)} if self._ipv6.is_there() else found

    def counters(self, addresses: Collection[Address] | None = None) -> dict[Address, Counters]:
        if addresses is None:
            found = self._ipv4.counters()
            return {**found, **self._ipv6.counters()} if self._ipv6.is_there() else found
        second = [address for address in addresses if address.version == 6]
        if not second:
            return self._ipv4.counters(addresses)
        first = [address for address in addresses if address.version == 4]
        found = self._ipv4.counters(first) if first else {}
        return {**found, **self._ipv6.counters(second)} if self._ipv6.is_there() else found

    def apply(self, diff: Diff[Address, Mark]) -> Mapping[Address, KernelError]:
        """Two transactions. What IPv6 refuses spoils the addresses of IPv6 alone."""
        ipv4, ipv6 = (_of(diff, version) for version in (4, 6))
        errors = dict(self._ipv4.apply(ipv4)) if ipv4 else {}
        if not ipv6:
            return errors
        try:
            return {**errors, **self._ipv6.apply(ipv6)}
        except KernelError as error:
            refused = KernelError(f"marks of IPv6: {error}", retry=error.retry)
            return {**errors, **dict.fromkeys((*ipv6.add, *ipv6.change, *ipv6.remove), refused)}


def _of(diff: Diff[Address, Mark], version: int) -> Diff[Address, Mark]:
    parts = diff.add, diff.change, diff.remove
    return Diff(*({a: mark for a, mark in part.items() if a.version == version} for part in parts))
