"""WireGuard in the kernel, over generic netlink.

Own packing instead of the netlink library's: that one sends one peer a message and takes 128 us to parse a peer; here
hundreds of peers go in one message and a peer is parsed in a few. Layout: linux/wireguard.h, linux/genetlink.h.

Traps: the length of a nested attribute is 16 bits, so a message holds some 240 peers. A dump comes in many messages,
and a peer with many allowed IPs goes on in the next one under the same key.
"""

from __future__ import annotations

import base64
import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address

from agent.errors import KernelError
from agent.kernel.host import interfaces
from agent.kernel.netlink import HEADER_BYTES, ListingRefused, Netlink, attribute, attributes, message, nested
from agent.kernel.wireguard.door import Absent, Device, HeldPeer, PeerChange, PortBusy, Refused, set_in_batches
from agent.model import NO_SECRET, Secret
from agent.objects import PeerState

FAMILY_NAME = b"wireguard\0"
PEERS_PER_MESSAGE = 200  # at most 320 bytes each, and all of them in one nested attribute: below 65,535

NETLINK_GENERIC = 16  # linux/netlink.h; Python has no name for it
NESTED = 0x8000  # NLA_F_NESTED
# linux/genetlink.h
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 0x10, 3, 1, 2
# linux/wireguard.h
GET_DEVICE, SET_DEVICE, VERSION = 0, 1, 1
DEVICE_IFNAME, DEVICE_PRIVATE_KEY, DEVICE_LISTEN_PORT, DEVICE_PEERS = 2, 3, 6, 8
PEER_PUBLIC_KEY, PEER_PRESHARED_KEY, PEER_FLAGS, PEER_ENDPOINT, PEER_KEEPALIVE = 1, 2, 3, 4, 5
PEER_HANDSHAKE, PEER_RX_BYTES, PEER_TX_BYTES, PEER_ALLOWED_IPS = 6, 7, 8, 9
ALLOWED_FAMILY, ALLOWED_ADDRESS, ALLOWED_MASK = 1, 2, 3
REMOVE_ME, REPLACE_ALLOWED_IPS, UPDATE_ONLY = 0x1, 0x2, 0x4
NO_KEY = bytes(32)

_GENERIC = struct.Struct("=BBH")  # genlmsghdr: command, version, reserved
_START = HEADER_BYTES + _GENERIC.size  # of the attributes in a message
_U16, _U32, _U64, _S64 = (struct.Struct(f"={code}") for code in "HIQq")


class KernelWireGuard:
    def available(self) -> str:
        """ "" or why it cannot be used here. Asking for the family makes the kernel load its module."""
        try:
            with _wireguard():
                return ""
        except KernelError as error:
            return str(error)

    def create(self, interface: str) -> None:
        interfaces.add_wireguard(interface)

    def remove(self, interface: str) -> None:
        interfaces.remove_interface(interface)

    def read_device(self, interface: str) -> Device:
        with _wireguard() as kernel:
            return parse_device(kernel.first(interface))

    def configure(self, interface: str, *, private_key: Secret | None = None, listen_port: int | None = None) -> None:
        packed = b""
        if private_key is not None:
            packed += attribute(DEVICE_PRIVATE_KEY, base64.b64decode(private_key.reveal()))
        if listen_port is not None:
            packed += _port(listen_port)
        with _wireguard() as kernel:
            try:
                kernel.set(interface, packed)
            except _InUse as error:
                if not listen_port:
                    raise
                kernel.set(interface, _port(0))  # it would go on naming the port that it did not get
                raise PortBusy(interface, listen_port) from error

    def read_peers(self, interface: str, only: Collection[str] | None = None) -> list[HeldPeer]:
        with _wireguard() as kernel:
            return parse_peers(kernel.dump(interface), only)

    def set_peers(self, interface: str, changes: Sequence[PeerChange]) -> dict[str, KernelError]:
        with _wireguard() as kernel:
            return set_in_batches(
                changes, PEERS_PER_MESSAGE, lambda batch: kernel.set(interface, peers_attribute(batch))
            )

    def call_peers(self, interface: str, public_keys: Sequence[str]) -> None:
        with _wireguard() as kernel:
            kernel.set(interface, calls_attribute(public_keys))


# -- packing ------------------------------------------------------------------------------------------------------


def _port(number: int) -> bytes:
    return attribute(DEVICE_LISTEN_PORT, _U16.pack(number))


def peers_attribute(changes: Sequence[PeerChange]) -> bytes:
    """Allowed IPs are replaced peer by peer, which leaves the peer's session alone."""
    return attribute(DEVICE_PEERS | NESTED, b"".join([_packed_change(one) for one in changes]))


def _packed_change(change: PeerChange) -> bytes:
    """Peer by peer in the order in which the kernel takes them; the same one may come several times."""
    key = attribute(PEER_PUBLIC_KEY, base64.b64decode(change.public_key))
    gone = attribute(NESTED, key + _flags(REMOVE_ME))
    if change.address is None:
        return gone
    return (gone if change.anew else b"") + attribute(NESTED, key + _packed_peer(change, change.address))


def calls_attribute(public_keys: Sequence[str]) -> bytes:
    calls = [
        attribute(PEER_PUBLIC_KEY, base64.b64decode(key)) + _flags(UPDATE_ONLY) + attribute(PEER_KEEPALIVE, on)
        for key in public_keys
        for on in (_U16.pack(1), _U16.pack(0))
    ]
    return attribute(DEVICE_PEERS | NESTED, b"".join([attribute(NESTED, call) for call in calls]))


def _flags(flags: int) -> bytes:
    return attribute(PEER_FLAGS, _U32.pack(flags))


def _packed_peer(change: PeerChange, address: IPv4Address) -> bytes:
    packed = b""
    if change.reset or change.preshared:
        key = base64.b64decode(change.preshared.reveal()) if change.preshared else NO_KEY
        packed += attribute(PEER_PRESHARED_KEY, key)
    if change.reset:
        packed += attribute(PEER_KEEPALIVE, _U16.pack(0))
    if change.endpoint:
        packed += attribute(PEER_ENDPOINT, _socket_address(change.endpoint))
    allowed = attribute(NESTED, _packed_allowed(socket.AF_INET, address.packed))
    if change.address_ipv6:
        allowed += attribute(NESTED, _packed_allowed(socket.AF_INET6, change.address_ipv6.packed))
    return packed + _flags(REPLACE_ALLOWED_IPS) + attribute(PEER_ALLOWED_IPS | NESTED, allowed)


def _packed_allowed(family: int, address: bytes) -> bytes:
    whole = bytes([len(address) * 8])
    named = attribute(ALLOWED_FAMILY, _U16.pack(family)) + attribute(ALLOWED_ADDRESS, address)
    return named + attribute(ALLOWED_MASK, whole)


def _socket_address(endpoint: str) -> bytes:
    """The way back from _endpoint()."""
    host, _, port = endpoint.rpartition(":")
    address, number = ip_address(host.strip("[]")), struct.pack("!H", int(port))
    if isinstance(address, IPv4Address):
        return _U16.pack(socket.AF_INET) + number + address.packed + bytes(8)
    return _U16.pack(socket.AF_INET6) + number + bytes(4) + address.packed + bytes(4)


# -- parsing: a message here is what stands behind the generic header, its attributes ------------------------------


def parse_device(message: bytes) -> Device:
    values = attributes(message)
    key = values.get(DEVICE_PRIVATE_KEY, NO_KEY)
    return Device(
        private_key=Secret("" if key == NO_KEY else base64.b64encode(key).decode()),
        listen_port=_U16.unpack(values[DEVICE_LISTEN_PORT])[0] if DEVICE_LISTEN_PORT in values else 0,
        has_peers=bool(values.get(DEVICE_PEERS)),
    )


def parse_peers(messages: Sequence[bytes], only: Collection[str] | None = None) -> list[HeldPeer]:
    """All messages of one dump. The pieces of a peer that was cut come one after the other. `only`: public keys."""
    peers: dict[bytes, tuple[dict[int, bytes], list[bytes]]] = {}
    keys = None if only is None else {base64.b64decode(key) for key in only}
    for one in messages:
        for packed in nested(attributes(one).get(DEVICE_PEERS, b"")):
            if keys is not None and packed[4:36] not in keys:  # the kernel puts the key first
                continue
            values = attributes(packed)
            allowed = nested(values.get(PEER_ALLOWED_IPS, b""))
            known = peers.setdefault(values[PEER_PUBLIC_KEY], (values, allowed))
            if known[0] is not values:
                known[1].extend(allowed)
    return [_peer(values, allowed) for values, allowed in peers.values()]


def _peer(values: dict[int, bytes], allowed: list[bytes]) -> HeldPeer:
    preshared = values.get(PEER_PRESHARED_KEY, NO_KEY)
    address, address_ipv6 = _only_addresses(allowed)
    return HeldPeer(
        PeerState(
            base64.b64encode(values[PEER_PUBLIC_KEY]).decode(),
            address,
            _endpoint(values.get(PEER_ENDPOINT, b"")),
            _U16.unpack(values.get(PEER_KEEPALIVE, b"\0\0"))[0],
            _S64.unpack_from(values.get(PEER_HANDSHAKE, bytes(8)))[0],
            _U64.unpack(values.get(PEER_RX_BYTES, bytes(8)))[0],
            _U64.unpack(values.get(PEER_TX_BYTES, bytes(8)))[0],
            address_ipv6,
        ),
        NO_SECRET if preshared == NO_KEY else Secret(base64.b64encode(preshared).decode()),
    )


def _only_addresses(allowed: list[bytes]) -> tuple[IPv4Address | None, IPv6Address | None]:
    held: dict[int, bytes] = {}
    for values in map(attributes, allowed):
        address = values.get(ALLOWED_ADDRESS, b"")
        if values.get(ALLOWED_MASK) == bytes([len(address) * 8]):
            held[len(address)] = address
    if len(held) != len(allowed) or 4 not in held:
        return None, None
    return IPv4Address(held[4]), IPv6Address(held[16]) if 16 in held else None


def _endpoint(address: bytes) -> str:
    """A sockaddr_in or sockaddr_in6: family in host order, port in network order."""
    if len(address) < 8:
        return ""
    family, port = struct.unpack("=H", address[:2])[0], struct.unpack("!H", address[2:4])[0]
    if family == socket.AF_INET:
        return f"{IPv4Address(address[4:8])}:{port}"
    return f"[{IPv6Address(address[8:24])}]:{port}"


# -- the conversation ---------------------------------------------------------------------------------------------


class _Family:
    """WireGuard's commands on an open generic netlink socket. Raises KernelError where the kernel has no WireGuard."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        asked = attribute(CTRL_ATTR_FAMILY_NAME, FAMILY_NAME)
        answer = netlink.ask(message(GENL_ID_CTRL, 0, _GENERIC.pack(CTRL_CMD_GETFAMILY, VERSION, 0) + asked))
        if isinstance(answer, bytes):
            self._kind = int(_U16.unpack(attributes(answer, _START)[CTRL_ATTR_FAMILY_ID])[0])
        elif answer is None or answer.errno == errno.ENOENT:
            raise KernelError(
                'this kernel has no WireGuard: install a kernel that has, or set wireguard = "userspace" in agent.toml',
                retry=False,
            )
        else:
            raise KernelError(f"generic netlink does not answer: {answer.text}")

    def set(self, interface: str, packed: bytes) -> None:
        for refusal in self._netlink.send([self._message(SET_DEVICE, interface, packed)]):
            raise _explained(interface, refusal.errno, refusal.text)

    def first(self, interface: str) -> bytes:
        """The first message of a dump: the link itself, and perhaps some of its peers."""
        return self._dumped(interface, self._netlink.peek)[0]

    def dump(self, interface: str) -> list[bytes]:
        return self._dumped(interface, self._netlink.dump)

    def _dumped(self, interface: str, read: Callable[[bytes], list[bytes]]) -> list[bytes]:
        try:
            return [data[_START:] for data in read(self._message(GET_DEVICE, interface))]
        except ListingRefused as error:
            raise _explained(interface, error.errno, str(error)) from error

    def _message(self, command: int, interface: str, packed: bytes = b"") -> bytes:
        named = attribute(DEVICE_IFNAME, interface.encode() + b"\0")
        return message(self._kind, 0, _GENERIC.pack(command, VERSION, 0) + named + packed)


@contextmanager
def _wireguard() -> Iterator[_Family]:
    """In the network namespace of the calling thread."""
    with Netlink(NETLINK_GENERIC) as netlink:
        yield _Family(netlink)


def _explained(interface: str, number: int, text: str) -> KernelError:
    if number == errno.ENODEV:
        return Absent(f"there is no link {interface}")
    if number == errno.EOPNOTSUPP:
        return Absent(f"{interface} is not a WireGuard link of the kernel")
    if number == errno.EADDRINUSE:
        return _InUse(f"WireGuard refused a change on {interface}: {text}")
    return Refused(f"WireGuard refused a change on {interface}: {text}")


class _InUse(Refused):
    """The port is another program's."""
