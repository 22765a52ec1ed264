"""Whether this host passes on what comes in on an interface: net.ipv4.conf.NAME.forwarding.

Owns that switch of our links and of the uplink, and what tells how the uplink's stood before us. Never touches the
switch of all interfaces, net.ipv4.ip_forward, nor that of any other one: Linux asks the interface a packet comes in on,
so those of the links and the uplink suffice. Called by both backends' forwarding.

A switch on the uplink is more than we need: it would pass on packets from the internet to every other network of the
box too. So the last of our forward rules drops what comes from the uplink to anything but our links, where that was so
before us. The same rule remembers it: it stands as long as we stand, and says whether to switch off again.

    all interfaces pass on (somebody made this box a router)     no such rule; we change nothing
    the uplink passed on before us                               RETURN, and it stays on when we go
    it did not                                                   DROP, and it is switched off when we go
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from agent.kernel.host import sysctl
from agent.objects import Forwarding

log = logging.getLogger("agent.kernel")


def _read(device: str) -> str:
    return sysctl.read("ipv4", device, "forwarding")


def _write(device: str, value: str) -> None:
    sysctl.write("ipv4", device, "forwarding", value)


def is_router() -> bool:
    """Does every interface pass on, or every new one? Then somebody wants this box to."""
    return "1" in (_read("all"), _read("default"))


def is_off(device: str) -> bool:
    """Is it there, and does not pass on?"""
    return _read(device) == "0"


def uplinks(wanted: Collection[Forwarding], found: Mapping[str, str]) -> set[str]:
    """Those that are ours to switch. While none is to be had, the former ones stay as they are and are remembered."""
    named = {one.uplink for one in wanted} - {""}
    return named or (set(found) if wanted else set())


def endings(uplinks: Collection[str], links: Collection[str], found: Mapping[str, str]) -> dict[str, str]:
    """The last forward rule for each uplink: "DROP" or "RETURN". `found`: those that stand.

    Where none stands and a link of ours passes on already, our rules were lost, and how it was before us with them:
    then it is closed.
    """
    if is_router():
        return {}
    known = any(_read(link) == "1" for link in links)
    ends = {}
    for uplink in sorted(uplinks):
        before = found.get(uplink, "DROP" if known else "RETURN")
        ends[uplink] = before if _read(uplink) == "1" else "DROP"
    return ends


def switch_on(links: Collection[str], uplinks: Collection[str]) -> None:
    for device in (*links, *uplinks):
        if is_off(device):
            _write(device, "1")
            if device in uplinks:
                log.info("forwarding of the uplink was off device=%s: switched on", device)


def switch_back(found: Mapping[str, str], kept: Collection[str]) -> None:
    """Those that we switched on and need no more. Before the rule goes that closes them."""
    if not is_router():
        for uplink, ending in found.items():
            if ending == "DROP" and uplink not in kept:
                _write(uplink, "0")


def describe(uplink: str) -> str:
    """For the doctor: what passes packets on here."""
    if is_router():
        return (
            "forwarding: this box passes packets on between all its interfaces (net.ipv4.ip_forward = 1). Somebody "
            "wanted that, or an older version of this agent: it is left so. If nobody needs it: "
            "sysctl -w net.ipv4.ip_forward=0, and the agent switches on what it needs"
        )
    names = sorted(path.parent.name for path in sysctl.conf("ipv4").glob("*/forwarding"))
    on = [name for name in names if name not in ("all", "default") and _read(name) == "1"]
    does = f"passes packets on that come in on {', '.join(on)}" if on else "passes no packets on"
    return f"forwarding: this box {does}; the agent switches it on for its links and {uplink or 'the uplink'} only"
