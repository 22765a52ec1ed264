"""A Linux with a memory: the parts that agent/parts.py names, with their dependencies, and switches to make it fail.

tests/contract runs the same suite against this and against the real doors in a namespace, so that it stays honest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from threading import RLock
from typing import Any

from agent.errors import KernelError
from agent.model import DEFAULT_MTU, Address
from agent.objects import (
    ANYWHERE,
    NO_STAMP,
    THE_INTERNET,
    Class,
    Counters,
    Diff,
    Forwarding,
    HostNetwork,
    Mark,
    PeerState,
    Qdisc,
    Scope,
    SessionState,
    ShownRule,
    ShownRules,
    stamp_after,
)
from agent.parts import Part


class FakePart:
    """Values by key. `needs(key, value)`: why a value cannot be added, "" = it can."""

    def __init__(self, kernel: FakeKernel, name: str, needs: Callable[[Any, Any], str]) -> None:
        self.kernel, self.name, self.needs = kernel, name, needs
        self.held: dict[Any, Any] = {}

    def read(self, scope: Scope) -> dict[Any, Any]:
        with self.kernel.lock:
            self.kernel.called(self.name, "read")
            return {key: value for key, value in self.held.items() if self.sees(key, scope)}

    def sees(self, key: Any, scope: Scope) -> bool:
        device = key[0] if isinstance(key, tuple) else key
        anywhere = self.name in ("links", "qdiscs", "responder", "logins", "ports", "gate", "filter")
        return anywhere or not isinstance(device, str) or device in scope.devices

    def apply(self, diff: Diff[Any, Any]) -> Mapping[Any, KernelError]:
        with self.kernel.lock:
            return self._applied(diff)

    def _applied(self, diff: Diff[Any, Any]) -> Mapping[Any, KernelError]:
        self.kernel.called(self.name, "apply")
        errors: dict[Any, KernelError] = {}
        for verb, values in (("remove", diff.remove), ("change", diff.change), ("add", diff.add)):
            for key, value in values.items():
                reason = self.kernel.refuses.get((self.name, verb, key), "")
                if verb != "remove":
                    reason = reason or self.needs(key, value)
                if reason:
                    errors[key] = KernelError(reason)
                    continue
                self.kernel.writes.append(f"{verb} {self.name} {_text(key)}")
                self.put(verb, key, value)
                self.kernel.watch(self.name, verb, key)
        return errors

    def put(self, verb: str, key: Any, value: Any) -> None:
        if verb != "remove":
            old = self.held.get(key)
            self.held[key] = value
            if (
                verb == "change" and self.name == "responder" and not (old and old.is_sound)
            ):  # started anew, with a new device
                self.kernel.gone(self.name, key)
        elif self.held.pop(key, None) is not None:
            self.kernel.gone(self.name, key)


class FakeMarks(FakePart):
    """Rules with counters: an added pair starts from its counters, a changed one keeps its own. `stamp`: what the table
    of IPv4 says of itself."""

    stamp = NO_STAMP

    def read(self, scope: Scope) -> dict[Any, Any]:
        return {key: replace(mark, counters=self._told(key, mark)) for key, mark in super().read(scope).items()}

    def _applied(self, diff: Diff[Any, Any]) -> Mapping[Any, KernelError]:
        errors = super()._applied(diff)
        if not errors:
            self.stamp = (stamp_after(diff, self.stamp) or self.stamp) if self.held else NO_STAMP
        return errors

    def put(self, verb: str, key: IPv4Address, value: Mark) -> None:
        old = self.held.get(key)
        if verb == "change" and old is not None and not value.restart:
            value = replace(value, counters=old.counters)
        super().put(verb, key, value if verb == "remove" else replace(value, owner=0, restart=False))

    def counters(self, addresses: Collection[Address] | None = None) -> dict[Address, Counters]:
        with self.kernel.lock:
            self.kernel.called("marks", "counters")
            return {a: self._told(a, mark) for a, mark in self.held.items() if addresses is None or a in addresses}

    def _told(self, address: Address, mark: Mark) -> Counters:
        return replace(mark.counters, made=self.stamp if address.version == 4 else NO_STAMP)


class FakeKernel:
    """`writes`: what was written, as text, in order. `refuses`: (part, verb, key) -> reason.

    `fail_at`: the number of calls from now after which one call raises.
    `watch`: called after every single write with (part, verb, key).
    """

    def __init__(self, uplink: str = "eth0") -> None:
        self.lock = RLock()  # classes come on a thread of their own
        self.uplink_name = uplink
        self.mtu = DEFAULT_MTU
        self.writes: list[str] = []
        self.refuses: dict[tuple[str, str, Any], str] = {}
        self.fail_at: int | None = None
        self.watch: Callable[[str, str, Any], None] = lambda part, verb, key: None
        self.refused = 0
        self.clients: dict[Any, str] = {}  # where the client of a peer is, by the peer's key
        self.trouble = ""  # of the node as a whole
        self.beside: tuple[str, ...] = ()  # what it warns of
        self.networks: tuple[HostNetwork, ...] = ()  # the host's own
        self.heard: frozenset[tuple[str, int]] = frozenset()  # what its programs listen on
        self.leaked = 0  # bytes that passed without being counted
        self.links = FakePart(self, "links", lambda k, v: "")
        self.qdiscs = FakePart(self, "qdiscs", self._no_device)
        self.classes = FakePart(self, "classes", lambda k, v: "" if k[0] in self.qdiscs.held else f"{k[0]}: no qdisc")
        self.filter = FakePart(self, "filter", lambda k, v: "")
        self.forwarding = FakePart(self, "forwarding", lambda k, v: "")
        self.marks = FakeMarks(self, "marks", lambda k, v: "")
        self.peers = FakePart(self, "peers", lambda k, v: "" if k[0] in self.links.held else f"{k[0]}: no link")
        self.responder_part = FakePart(self, "responder", lambda k, v: "")
        self.logins = FakePart(self, "logins", lambda k, v: self._no_responder())
        self.ports = FakePart(self, "ports", lambda k, v: "")
        self.gate = FakePart(self, "gate", lambda k, v: self._no_responder())
        self.parts = {
            part.name: part
            for part in (
                *(self.links, self.responder_part, self.qdiscs, self.classes, self.filter, self.forwarding),
                *(self.marks, self.peers, self.logins, self.ports, self.gate),
            )
        }

    def door(self, part: Part[Any, Any]) -> Any:
        if part.name == "marks":  # a test may put real ones in their place
            return self.marks
        return self.parts[part.name]

    def uplink(self) -> str:
        self.called("uplink", "read")
        return self.uplink_name

    def tunnel_mtu(self, uplink: str) -> int:
        return self.mtu

    def keep_answers(self, serves: bool) -> KernelError | None:
        return None

    def forget_connections(self, addresses: Collection[Address]) -> None:
        if addresses:
            self.called("connections", "forget")
            self.writes.append(f"forget {' '.join(map(str, sorted(addresses)))}")

    def endpoints(self, keys: Collection[Any]) -> dict[Any, str]:
        self.called("peers", "endpoints")
        return {key: self.clients[key] for key in keys if key in self.peers.held and key in self.clients}

    def refused_connections(self) -> int:
        return self.refused

    def warnings(self, scope: Scope) -> tuple[str, ...]:
        return self.beside

    def problem(self, scope: Scope) -> str:
        return self.trouble

    def responder(self) -> tuple[str, int]:
        return ("strongSwan 5.9.8", 500) if self.responder_part.held else ("", 0)

    def sessions(self) -> list[SessionState]:
        return []

    def disconnect(self, username: str) -> bool:
        return False

    def host_networks(self) -> tuple[HostNetwork, ...]:
        return self.networks

    def listening(self) -> frozenset[tuple[str, int]]:
        return self.heard

    def peer_states(self, interface: str) -> dict[str, PeerState]:
        return {
            key: PeerState(key, peer.address, "", 0, 0, 0, 0)
            for (device, key), peer in self.peers.held.items()
            if device == interface
        }

    def class_text(self, device: str, minor: int) -> str | None:
        found: Class | None = self.classes.held.get((device, minor))
        return f"class htb 1:{minor:x} rate {found.rate}Mbit\n" if found else None

    def root_text(self, device: str) -> str | None:
        return f"qdisc htb 1: root {device}\n" if device in self.qdiscs.held else None

    def server_rules(self, interface: str, network: IPv4Network, ipv6: IPv6Network | None) -> ShownRules:
        """As legacy iptables shows them, which counts there."""
        one: Forwarding | None = self.forwarding.held.get(interface)
        if one is None:
            return ShownRules((), ())
        target = "MASQUERADE" if one.external_ip is None else f"SNAT to:{one.external_ip}"
        inside = "ACCEPT" if one.internal_traffic else "DROP"
        second = (ShownRule(str(ipv6), THE_INTERNET, "ACCEPT"),) if ipv6 else ()  # nftables, which does not count
        return ShownRules(
            (ShownRule(str(network), ANYWHERE, target, 0, 0),),
            (
                ShownRule(str(network), THE_INTERNET, "ACCEPT", 0, 0),
                ShownRule(str(network), str(network), inside, 0, 0),
                *second,
            ),
        )

    # -- what a test does to it --

    def pass_traffic(self, address: str, download: int, upload: int) -> None:
        """Bytes of a client: they pass if its peer is there, and are counted if its rules are."""
        key = IPv4Address(address)
        if not any(peer.address == key for peer in self.peers.held.values()):
            return
        mark = self.marks.held.get(key)
        if mark is None:
            self.leaked += download + upload
            return
        c = mark.counters
        counters = Counters(
            c.download_packets + 1, c.download_bytes + download, c.upload_packets + 1, c.upload_bytes + upload
        )
        self.marks.held[key] = replace(mark, counters=counters)

    def reboot(self) -> None:
        for part in self.parts.values():
            part.held.clear()
        self.marks.stamp = NO_STAMP

    def shown(self) -> dict[str, dict[Any, Any]]:
        return {name: dict(part.held) for name, part in self.parts.items()}

    # -- how it behaves --

    def called(self, part: str, verb: str) -> None:
        if self.fail_at is not None:
            self.fail_at -= 1
            if self.fail_at < 0:
                self.fail_at = None
                raise KernelError(f"{part} {verb}: failed on purpose")

    def gone(self, part: str, key: Any) -> None:
        """What goes with a link or a qdisc."""
        dependents = {
            "links": (self.qdiscs, self.classes, self.peers),
            "responder": (self.qdiscs, self.classes, self.logins, self.gate),
            "qdiscs": (self.classes,),
        }
        for other in dependents.get(part, ()):
            for held in [h for h in other.held if other is self.logins or key in (h, h[0])]:
                del other.held[held]

    def _no_device(self, key: str, value: Qdisc) -> str:
        there = {self.uplink_name, *self.links.held, *self.responder_part.held}
        return "" if key in there else f"{key}: no such device"

    def _no_responder(self) -> str:
        return "" if self.responder_part.held else "no responder"


def _text(key: Any) -> str:
    if isinstance(key, tuple):
        return f"{key[0]} {key[1]:x}" if isinstance(key[1], int) else f"{key[0]} {key[1][:6]}"
    return str(key)
