"""In which order the ways out of the links are opened and closed. PURE: no I/O, no clock, no configuration.

A way is opened when what shapes it stands, and only where its link listens. Called by steps.py and writer.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from agent.model import IKEV2_DEVICE, Address, minor
from agent.objects import ClassKey, Diff, Forwarding, LoginRow, Peer, PeerKey
from agent.parts import CLASSES, FORWARDING, LINKS, LOGINS, MARKS, PEERS
from agent.wanted import Wanted


def as_they_listen(
    difference: Diff[str, Forwarding], found: Wanted, failed_links: Collection[str]
) -> Diff[str, Forwarding]:
    """A port is open only while its link listens: one that could not take its port opens the one that it has, or none.

    Adds and changes only. `failed_links`: they are `found` as they stand.
    """
    change = dict(difference.change)
    for link in found[FORWARDING].keys() & set(failed_links):
        stands = found[FORWARDING][link]
        port = found[LINKS][link].listen_port if link in found[LINKS] else 0
        real = replace(change.pop(link, stands), listen_port=port)
        if real != stands:
            change[link] = real
    return Diff(difference.add, change)


def opened_last(
    difference: Diff[str, Forwarding], found: Wanted, new: Collection[ClassKey]
) -> tuple[Diff[str, Forwarding], Diff[str, Forwarding]]:
    """What can be opened at once, and what only when classes that are still to be made on the uplink (`new`) are there:
    the way out of links whose peers stand already, to another uplink than the one they have."""
    if not (difference.add or difference.change):
        return Diff(), Diff()  # as with every change of an account; what follows looks at all peers
    devices, peopled = {device for device, _ in new}, {interface for interface, _ in found[PEERS]}
    wait = {
        link
        for link, one in {**difference.add, **difference.change}.items()
        if link in peopled and one.uplink in devices
        if link not in found[FORWARDING] or found[FORWARDING][link].uplink != one.uplink
    }
    ways = difference.add, difference.change
    at_once, at_last = (
        Diff(*({link: one for link, one in part.items() if (link in wait) is late} for part in ways))
        for late in (False, True)
    )
    return at_once, at_last


def unlimited(
    ways: Diff[str, Forwarding], new: Collection[ClassKey], found: Wanted
) -> tuple[dict[PeerKey, Peer], dict[str, LoginRow]]:
    """The peers and the logins whose rules lead to a class that was refused, on the device by which they come in or on
    an uplink that is open or is to be opened (`ways`): nothing would limit them there.

    `new`: the classes that were to be made.
    """
    refused = {key for key in new if key not in found[CLASSES]}
    if not refused:
        return {}, {}
    out = {one.uplink for one in (*found[FORWARDING].values(), *ways.add.values(), *ways.change.values())}

    def addresses(devices: Collection[str]) -> set[Address]:
        minors = {number for device, number in refused if device in devices}
        return {address for address, mark in found[MARKS].items() if minor(mark.mark) in minors}

    by_wireguard, by_ikev2 = addresses(out | found[LINKS].keys()), addresses({*out, IKEV2_DEVICE})
    return (
        {key: peer for key, peer in found[PEERS].items() if peer.address in by_wireguard},
        {key: login for key, login in found[LOGINS].items() if login.address in by_ikev2},
    )


def without(difference: Diff[str, Forwarding], failed: Collection[str]) -> Diff[str, Forwarding]:
    """Adds and changes, but for the ways to an uplink that could not be made right."""
    return Diff(
        *({k: v for k, v in part.items() if v.uplink not in failed} for part in (difference.add, difference.change))
    )


def closed(wanted_ones: dict[str, Forwarding], standing: dict[str, Forwarding]) -> Diff[str, Forwarding]:
    """The rules that stand, with no way out (`wanted_ones` have none); nothing where no way stands open."""
    if not any(standing):  # those that are closed read as damaged
        return Diff()
    ports = {link: one.listen_port for link, one in standing.items()}
    gone = {link: replace(one, uplink="") for link, one in standing.items() if link}
    return Diff(change=gone | {k: replace(one, listen_port=ports.get(k, 0)) for k, one in wanted_ones.items()})
