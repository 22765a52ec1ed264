"""Where Linux leads our packets, asked of Linux itself: a stranger's route or rule that takes them elsewhere.

A rule (`ip rule`) with a table of its own, or a route to a part of a server's network, leaves all of ours in place and
the customers dead, or at large by an interface that neither translates nor limits them. No list of rules is read and
judged here: Linux is asked for the way of one packet in each direction. Reads only. Called after each full pass.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from socket import AF_INET, if_indextoname, if_nametoindex

from agent.kernel.netlink import HEADER_BYTES, Netlink, Refusal, attribute, attributes, message
from agent.model import IKEV2_DEVICE, LEAST_MTU, WIREGUARD_BYTES
from agent.objects import Forwarding, HostNetwork

RTM_GETROUTE = 26  # linux/rtnetlink.h
RTN_LOCAL = 2
RTF_REJECT = 0x200  # linux/route.h
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF = 1, 2, 3, 4
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths of destination and source, tos, table, ..., type, flags
THIS_BOX = "this box"  # not by `lo`, where a route leads what shall be lost
MOST_TOLD = 3  # of one kind; a thousand servers have the same trouble


def warnings(
    servers: Collection[Forwarding], host: Collection[HostNetwork], addresses: Collection[IPv4Address]
) -> tuple[str, ...]:
    """`host`: its networks but for those of our links. `addresses`: all that this box has."""
    open_ones = [one for one in servers if one.uplink]
    kinds = (_taken_networks(servers, host), _led_elsewhere(open_ones, addresses), _foreign_sources(servers, addresses))
    told: list[str] = []
    for kind in kinds:
        sentences = list(dict.fromkeys(kind))
        told += sentences[:MOST_TOLD]
        if len(sentences) > MOST_TOLD:
            told.append(f"and {len(sentences) - MOST_TOLD} more servers with the trouble named last")
    return tuple(told)


def narrow(uplink: str, mtu: int) -> Iterator[str]:
    if mtu < LEAST_MTU + WIREGUARD_BYTES:
        yield (
            f"the MTU of {uplink} is {mtu}: a tunnel needs {LEAST_MTU + WIREGUARD_BYTES} to send {LEAST_MTU} bytes "
            "whole. Larger packets of customers go in fragments, which many networks drop"
        )


def without_ipv6(servers: Collection[Forwarding], uplink: str) -> Iterator[str]:
    """The agent asks for the way out by IPv4 alone."""
    if any(one.ipv6 for one in servers) and not _has_default_ipv6(uplink):
        yield (
            f"accounts have IPv6 and this box has no way out for it: {uplink} has no default route of IPv6 "
            "(`ip -6 route show default`). Give it one, or `ipv6=0` to the servers: clients wait for what never comes"
        )


def _has_default_ipv6(uplink: str) -> bool:
    with suppress(OSError):
        for line in Path("/proc/thread-self/net/ipv6_route").read_text().splitlines():
            network, length, *_, flags, device = line.split()
            if length == "00" and not network.strip("0") and device == uplink and not int(flags, 16) & RTF_REJECT:
                return True
    return False


def _taken_networks(servers: Collection[Forwarding], host: Collection[HostNetwork]) -> Iterator[str]:
    for one in servers:
        for other in host:
            if other.network.subnet_of(one.network):  # a larger one gives way to ours
                yield (
                    f"{other.network} leads to {other.interface} and lies in {one.network} of {one.interface}: "
                    f"accounts in it are out of reach. Remove it (`ip route show {other.network}`), or give the server "
                    "another network"
                )


def _led_elsewhere(servers: Collection[Forwarding], addresses: Collection[IPv4Address]) -> Iterator[str]:
    with Netlink() as netlink:
        for one in servers:
            client, there = one.client, one.target
            for source, target, enters, leaves in (
                (client, there, one.interface, one.uplink),
                (there, client, one.uplink, one.interface),
            ):
                way = _way(netlink, source, target, enters)
                if way == THIS_BOX and target in addresses:
                    continue
                if way not in (leaves, IKEV2_DEVICE):  # that address is in by IKEv2 now
                    yield (
                        f"what comes in by {enters} for {'the internet' if target == there else one.network} is led "
                        f"to {way or 'nowhere'} and not to {leaves}: a rule or route of somebody else takes the "
                        f"traffic of {one.interface} (`ip rule`, `ip route get {target} from {source} iif {enters}`)"
                    )


def _way(netlink: Netlink, source: IPv4Address, target: IPv4Address, enters: str) -> str:
    """The interface that such a packet leaves by; "" = by none; THIS_BOX = it is for nobody else."""
    try:
        index = if_nametoindex(enters)
    except OSError:
        return ""
    head = _ROUTE.pack(AF_INET, 32, 32, 0, 0, 0, 0, 0, 0)
    asked = attribute(RTA_DST, target.packed) + attribute(RTA_SRC, source.packed)
    answer = netlink.ask(message(RTM_GETROUTE, 0, head + asked + attribute(RTA_IIF, struct.pack("=i", index))))
    if answer is None or isinstance(answer, Refusal):
        return ""
    if _ROUTE.unpack_from(answer, HEADER_BYTES)[7] == RTN_LOCAL:
        return THIS_BOX
    found = attributes(answer, HEADER_BYTES + _ROUTE.size).get(RTA_OIF)
    try:
        return if_indextoname(struct.unpack("=i", found)[0]) if found else ""
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return ""  # gone meanwhile


def _foreign_sources(servers: Collection[Forwarding], addresses: Collection[IPv4Address]) -> Iterator[str]:
    for one in servers:
        if one.external_ip and one.external_ip not in addresses:
            yield (
                f"external_ip {one.external_ip} of {one.interface} is no address of this box: its accounts are "
                f"answered only where a router leads that address here. Behind a NAT leave external_ip empty; else "
                f"`ip address add {one.external_ip}/32 dev {one.uplink or 'UPLINK'}`"
            )
