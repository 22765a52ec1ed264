"""The bytes that go to WireGuard and come back, in both dialects, without any WireGuard.

The kernel's dialect is checked against an independent decoder and encoder (pyroute2's message classes).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.generic.wireguard import wgmsg

from agent.errors import KernelError
from agent.kernel.host.watch import ANY, News
from agent.kernel.netlink import attribute
from agent.kernel.wireguard import genetlink, uapi
from agent.kernel.wireguard.door import HeldPeer, PeerChange, Refused, set_in_batches
from agent.model import Secret
from agent.objects import PeerState

KEY_A, KEY_B, KEY_C = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))
HEX_A, HEX_B, HEX_C = ("01" * 32, "02" * 32, "03" * 32)
ADDRESS = IPv4Address("10.0.0.2")


# -- userspace ----------------------------------------------------------------------------------------------------


def test_uapi_changes_are_one_operation_and_never_replace_all_peers() -> None:
    changes = [PeerChange(KEY_A, None), PeerChange(KEY_B, ADDRESS), PeerChange(KEY_C, IPv4Address("10.0.0.3"), True)]
    assert uapi.peers_message(changes).decode().split("\n") == [
        "set=1",
        f"public_key={HEX_A}",
        "remove=true",
        f"public_key={HEX_B}",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.2/32",
        f"public_key={HEX_C}",
        "preshared_key=" + "0" * 64,
        "persistent_keepalive_interval=0",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.3/32",
        "",
        "",
    ]


def test_uapi_a_peer_comes_back_with_its_endpoint_and_is_called_then() -> None:
    secret = Secret(base64.b64encode(b"\x0b" * 32).decode())
    change = PeerChange(KEY_A, ADDRESS, preshared=secret, endpoint="192.0.2.1:40000", anew=True)
    assert uapi.peers_message([change]).decode().split("\n")[1:-2] == [
        f"public_key={HEX_A}",
        "remove=true",
        f"public_key={HEX_A}",
        "preshared_key=" + "0b" * 32,
        "endpoint=192.0.2.1:40000",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.2/32",
    ]
    assert uapi.calls_message([KEY_A, KEY_B]).decode().split("\n") == [
        "set=1",
        *(f"public_key={HEX_A}", "update_only=true", "persistent_keepalive_interval=1"),
        *(f"public_key={HEX_A}", "update_only=true", "persistent_keepalive_interval=0"),
        *(f"public_key={HEX_B}", "update_only=true", "persistent_keepalive_interval=1"),
        *(f"public_key={HEX_B}", "update_only=true", "persistent_keepalive_interval=0"),
        "",
        "",
    ]


UAPI_ANSWER = f"""private_key={"0a" * 32}
listen_port=51820
fwmark=7
public_key={HEX_A}
preshared_key={"0" * 64}
protocol_version=1
endpoint=192.0.2.1:40000
last_handshake_time_sec=1700000000
last_handshake_time_nsec=123
tx_bytes=11
rx_bytes=22
persistent_keepalive_interval=0
allowed_ip=10.0.0.2/32
public_key={HEX_B}
preshared_key={"0b" * 32}
word_of_a_later_version=1
persistent_keepalive_interval=25
allowed_ip=10.0.0.3/32
allowed_ip=10.0.1.0/24
errno=0

""".encode()


def test_uapi_answer_becomes_peers() -> None:
    assert uapi.parse_peers(UAPI_ANSWER) == [
        HeldPeer(PeerState(KEY_A, ADDRESS, "192.0.2.1:40000", 0, 1700000000, 22, 11)),
        HeldPeer(PeerState(KEY_B, None, "", 25, 0, 0, 0), Secret(base64.b64encode(b"\x0b" * 32).decode())),
    ]


def test_uapi_only_those_asked_for_are_read() -> None:
    (held,) = uapi.parse_peers(UAPI_ANSWER, [KEY_B, KEY_C])
    assert held.state.public_key == KEY_B


def test_uapi_answer_becomes_a_device() -> None:
    device = uapi.parse_device(UAPI_ANSWER)
    assert device.private_key == Secret(base64.b64encode(b"\x0a" * 32).decode())
    assert (device.listen_port, device.has_peers) == (51820, True)


@pytest.mark.parametrize(
    ("answer", "port", "has_peers"),
    [
        ("errno=0\n\n", 0, False),
        ("listen_port=9\nerrno=0\n\n", 9, False),
        (f"public_key={HEX_A}\nerrno=0\n\n", 0, True),
    ],
)
def test_uapi_device_that_is_not_configured_has_no_key(answer: str, port: int, has_peers: bool) -> None:
    device = uapi.parse_device(answer.encode())
    assert (device.private_key, device.listen_port, device.has_peers) == (Secret(""), port, has_peers)


@pytest.mark.parametrize("allowed", ["10.0.0.2/31", "fd00::/32", "0.0.0.0/0", ""])
def test_uapi_peer_with_anything_but_one_32_has_no_address(allowed: str) -> None:
    line = f"allowed_ip={allowed}\n" if allowed else ""
    (held,) = uapi.parse_peers(f"public_key={HEX_A}\n{line}errno=0\n\n".encode())
    assert held.state.address is None


# -- kernel -------------------------------------------------------------------------------------------------------


def decoded(attributes: bytes) -> dict[str, Any]:
    """What pyroute2 makes of our bytes."""
    length = 20 + len(attributes)
    message = wgmsg(struct.pack("=IHHII", length, 0x20, 0, 1, 0) + struct.pack("=BBH", 1, 1, 0) + attributes)
    message.decode()
    return dict(message["attrs"])


def decoded_peers(attributes: bytes) -> list[dict[str, Any]]:
    return [dict(peer["attrs"]) for peer in decoded(attributes)["WGDEVICE_A_PEERS"]]


def test_kernel_change_is_byte_for_byte_what_the_header_file_says() -> None:
    peer = (
        "2400 0100" + HEX_A  # public key
        + "0800 0300 02000000"  # flags: replace allowed IPs
        + "2000 0980"  # allowed IPs
        + "1c00 0080"  # the only one
        + "0600 0100 0200 0000"  # AF_INET
        + "0800 0200 0a000002"
        + "0500 0300 20 000000"  # /32
    )  # fmt: skip
    length = struct.pack("=H", 4 + 36 + 8 + 32).hex()
    outer = struct.pack("=H", 8 + 36 + 8 + 32).hex()
    assert genetlink.peers_attribute([PeerChange(KEY_A, ADDRESS)]) == bytes.fromhex(
        f"{outer} 0880 {length} 0080 {peer}"
    )


def test_kernel_removal_and_reset_are_understood_by_others() -> None:
    changes = [PeerChange(KEY_A, None), PeerChange(KEY_B, ADDRESS, reset=True)]
    removed, mended = decoded_peers(genetlink.peers_attribute(changes))
    assert removed["WGPEER_A_FLAGS"] == 1  # WGPEER_F_REMOVE_ME
    assert removed["WGPEER_A_PUBLIC_KEY"] == KEY_A.encode()
    assert "WGPEER_A_ALLOWEDIPS" not in removed
    assert mended["WGPEER_A_FLAGS"] == 2  # WGPEER_F_REPLACE_ALLOWEDIPS
    assert mended["WGPEER_A_PRESHARED_KEY"] == base64.b64encode(bytes(32))
    assert mended["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL"] == 0
    assert [allowed["addr"] for allowed in mended["WGPEER_A_ALLOWEDIPS"]] == ["10.0.0.2/32"]


def test_kernel_message_of_the_largest_batch_fits_a_nested_attribute() -> None:
    longest = PeerChange(KEY_A, ADDRESS, True, Secret(KEY_B), "[2001:db8::1]:40000", anew=True)
    packed = genetlink.peers_attribute([longest] * genetlink.PEERS_PER_MESSAGE)
    assert struct.unpack("=H", packed[:2])[0] == len(packed)
    assert len(decoded_peers(packed)) == 2 * genetlink.PEERS_PER_MESSAGE


@pytest.mark.parametrize("endpoint", ["192.0.2.1:40000", "[2001:db8::1]:40000"])
def test_kernel_a_peer_comes_back_with_its_endpoint_and_is_called_then(endpoint: str) -> None:
    change = PeerChange(KEY_A, ADDRESS, preshared=Secret(KEY_B), endpoint=endpoint, anew=True)
    gone, whole = decoded_peers(genetlink.peers_attribute([change]))
    assert gone["WGPEER_A_FLAGS"] == 1 and len(gone) == 2
    assert whole["WGPEER_A_FLAGS"] == 2
    assert whole["WGPEER_A_PRESHARED_KEY"] == KEY_B.encode()
    where = whole["WGPEER_A_ENDPOINT"]
    assert (where["addr"], where["port"]) == (endpoint.rpartition(":")[0].strip("[]"), 40000)
    calls = decoded_peers(genetlink.calls_attribute([KEY_A, KEY_B]))
    assert [one["WGPEER_A_PUBLIC_KEY"].decode() for one in calls] == [KEY_A, KEY_A, KEY_B, KEY_B]
    for update, seconds in zip(calls, (1, 0, 1, 0), strict=True):
        assert update["WGPEER_A_FLAGS"] == 4  # WGPEER_F_UPDATE_ONLY
        assert update["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL"] == seconds
    (again,) = genetlink.parse_peers([genetlink.peers_attribute([replace(change, anew=False)])], [KEY_A, KEY_C])
    assert (again.state.endpoint, again.preshared) == (endpoint, Secret(KEY_B))
    assert genetlink.parse_peers([genetlink.peers_attribute([change])], [KEY_C]) == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.ip_addresses(v=4)), unique_by=lambda one: one[0]))
def test_kernel_parse_reads_what_was_packed(peers: list[tuple[bytes, IPv4Address]]) -> None:
    changes = [PeerChange(base64.b64encode(key).decode(), address) for key, address in peers]
    held = genetlink.parse_peers([genetlink.peers_attribute(changes)])
    assert [(one.state.public_key, one.state.address) for one in held] == [
        (one.public_key, one.address) for one in changes
    ]


def allowed_ip(family: int, address: bytes, mask: int) -> bytes:
    return attribute(
        0x8000, attribute(1, struct.pack("=H", family)) + attribute(2, address) + attribute(3, bytes([mask]))
    )


def dumped(*peers: bytes) -> bytes:
    return attribute(2, b"wg0\0") + attribute(6, struct.pack("=H", 51820)) + attribute(
        0x8008, b"".join(attribute(0x8000, peer) for peer in peers)
    )  # fmt: skip


FULL_PEER = (
    attribute(1, b"\x01" * 32)
    + attribute(2, bytes(32))
    + attribute(6, struct.pack("=qq", 1700000000, 5))
    + attribute(5, struct.pack("=H", 25))
    + attribute(8, struct.pack("=Q", 11))
    + attribute(7, struct.pack("=Q", 1 << 40))
    + attribute(10, struct.pack("=I", 1))
    + attribute(4, struct.pack("=H", 2) + struct.pack("!H", 40000) + bytes([192, 0, 2, 1]) + bytes(8))
    + attribute(0x8009, allowed_ip(2, ADDRESS.packed, 32))
)


def test_kernel_dump_becomes_peers() -> None:
    keyed = attribute(1, b"\x02" * 32) + attribute(2, b"\x09" * 32)
    assert genetlink.parse_peers([dumped(FULL_PEER, keyed)]) == [
        HeldPeer(PeerState(KEY_A, ADDRESS, "192.0.2.1:40000", 25, 1700000000, 1 << 40, 11)),
        HeldPeer(PeerState(KEY_B, None, "", 0, 0, 0, 0), Secret(base64.b64encode(b"\x09" * 32).decode())),
    ]


def test_kernel_peer_that_goes_on_in_the_next_message_is_one_peer() -> None:
    rest = attribute(1, b"\x01" * 32) + attribute(0x8009, allowed_ip(2, bytes([10, 0, 9, 0]), 24))
    other = attribute(1, b"\x02" * 32)
    first, second = genetlink.parse_peers([dumped(FULL_PEER), dumped(rest, other)])
    assert first.state.public_key == KEY_A
    assert first.state.address is None  # it has two allowed IPs
    assert (first.state.rx_bytes, first.state.endpoint) == (1 << 40, "192.0.2.1:40000")
    assert second.state.public_key == KEY_B


@pytest.mark.parametrize(
    "allowed",
    [allowed_ip(2, ADDRESS.packed, 31), allowed_ip(10, bytes(16), 32), b""],
    ids=["a wider network", "IPv6", "none"],
)
def test_kernel_peer_with_anything_but_one_32_has_no_address(allowed: bytes) -> None:
    (held,) = genetlink.parse_peers([dumped(attribute(1, b"\x01" * 32) + attribute(0x8009, allowed))])
    assert held.state.address is None


def test_kernel_endpoint_of_ipv6_is_bracketed() -> None:
    endpoint = struct.pack("=H", 10) + struct.pack("!HI", 51820, 0) + bytes(15) + b"\x01" + bytes(4)
    (held,) = genetlink.parse_peers([dumped(attribute(1, b"\x01" * 32) + attribute(4, endpoint))])
    assert held.state.endpoint == "[::1]:51820"


def test_kernel_dump_becomes_a_device() -> None:
    device = genetlink.parse_device(dumped(FULL_PEER) + attribute(3, b"\x0a" * 32))
    assert (device.listen_port, device.has_peers) == (51820, True)
    assert device.private_key == Secret(base64.b64encode(b"\x0a" * 32).decode())
    blank = genetlink.parse_device(attribute(2, b"wg0\0") + attribute(6, b"\0\0"))
    assert (blank.private_key, blank.listen_port, blank.has_peers) == (Secret(""), 0, False)


# -- batches ------------------------------------------------------------------------------------------------------


class Picky:
    """A WireGuard that stops at the first key it does not like, as both of the real ones do."""

    def __init__(self, *refused: str) -> None:
        self.refused = set(refused)
        self.held: set[str] = set()
        self.sizes: list[int] = []

    def send(self, batch: Sequence[PeerChange]) -> None:
        self.sizes.append(len(batch))
        for change in batch:
            if change.public_key in self.refused:
                raise Refused("no")
            self.held.add(change.public_key)


def test_refused_peers_are_found_and_all_others_done() -> None:
    changes = [PeerChange(f"key {number}", ADDRESS) for number in range(100)]
    picky = Picky("key 0", "key 41", "key 42", "key 99")
    errors = set_in_batches(changes, 30, picky.send)
    assert errors.keys() == picky.refused
    assert picky.held == {change.public_key for change in changes} - picky.refused
    assert max(picky.sizes) == 30


def test_changes_keep_their_order() -> None:
    sent: list[str] = []
    changes = [PeerChange(str(number), ADDRESS) for number in range(7)]
    set_in_batches(changes, 3, lambda batch: sent.extend(change.public_key for change in batch))
    assert sent == list("0123456")


def test_a_link_that_is_gone_is_asked_once_and_every_key_hears_of_it() -> None:
    asked = 0

    def send(batch: Sequence[PeerChange]) -> None:
        nonlocal asked
        asked += 1
        raise KernelError("gone")

    changes = [PeerChange(str(number), ADDRESS) for number in range(50)]
    assert set_in_batches(changes, 10, send).keys() == {change.public_key for change in changes}
    assert asked == 1


# -- events -------------------------------------------------------------------------------------------------------


def event(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def link_event(kind: int, *, up: bool = True, mtu: int = 1420, extra: bytes = b"") -> bytes:
    body = struct.pack("=BBHiII", 0, 0, 65534, 7, int(up), 0)
    return event(kind, body + attribute(3, b"wg1\0") + attribute(4, struct.pack("=I", mtu)) + extra)


def test_link_events_are_told_once_for_each_change() -> None:
    news = News()
    told = [
        list(news.devices(data))
        for data in (
            link_event(16),
            link_event(16, extra=attribute(23, bytes(200))),  # statistics
            link_event(16, up=False),
            link_event(16, up=False, mtu=1400),
            link_event(17),
            link_event(16),
        )
    ]
    assert told == [["wg1"], [], ["wg1"], ["wg1"], ["wg1"], ["wg1"]]


def test_of_routes_only_the_default_one_and_those_of_our_links_are_told() -> None:
    news = News()
    list(news.devices(link_event(16)))  # index 7 is wg1
    ours, other = (attribute(4, struct.pack("=i", index)) for index in (7, 1))  # 1 is lo, everywhere
    default, longer = (struct.pack("=BBBBBBBBI", 2, length, 0, 0, 254, 0, 0, 0, 0) for length in (0, 24))
    for kind in (24, 25):
        assert list(news.devices(event(kind, longer + other) + event(kind, longer))) == []
        assert list(news.devices(event(kind, longer + ours))) == ["wg1"]
        # Whose it is now matters, not the device's name.
        assert list(news.devices(event(kind, default + other))) == [ANY]
    assert list(news.devices(event(24, default))) == [ANY]  # several paths: no single device
