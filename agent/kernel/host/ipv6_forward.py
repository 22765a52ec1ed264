"""Whether this host passes IPv6 on: net.ipv6.conf.all.forwarding.

Linux asks that one switch, whatever interface a packet comes in by (not so of IPv4, see `ip_forward`). So while it is
on by us, the last of our forward rules drops what is not our links'. Owns the switch while a server has IPv6, if nobody
else had turned it on. Called by forwarding of IPv6.

How it is remembered: who turns on `all` turns on `default` with it, and Linux does so for him. We turn `default` off
again behind us. So `all` on and `default` off is our sign, also where the rules were lost; and whoever turns `all` on
after us takes it over by that.

    router advertisements   A box that passes on ignores them unless accept_ra is 2, and forgets the default route that
                            it had from them: the box would lose its IPv6 minutes after the first server has some. So
                            where they are listened to (1), accept_ra becomes 2 before. It stays so: to a box that
                            does not pass on, 2 means what 1 does
"""

from __future__ import annotations

import logging

from agent.kernel.host import sysctl

log = logging.getLogger("agent.kernel")


def _read(device: str, name: str) -> str:
    return sysctl.read("ipv6", device, name)


def _write(device: str, name: str, value: str) -> None:
    sysctl.write("ipv6", device, name, value)


def is_on() -> bool:
    return _read("all", "forwarding") == "1"


def is_elses() -> bool:
    """Does somebody else want this box to pass IPv6 on?"""
    return is_on() and _read("default", "forwarding") == "1"


def is_ours() -> bool:
    """As far as the switches tell."""
    return is_on() and not is_elses()


def switch_on() -> None:
    if is_on():
        return
    for path in sysctl.conf("ipv6").glob("*/accept_ra"):
        device = path.parent.name
        if _read(device, "accept_ra") == "1" and _read(device, "forwarding") == "0":
            _write(device, "accept_ra", "2")
    _write("all", "forwarding", "1")
    _write("default", "forwarding", "0")
    log.info("forwarding of IPv6 was off: switched on")


def switch_back() -> None:
    """If it was us. Before the rule goes that drops what is not our links'."""
    if is_ours():
        _write("all", "forwarding", "0")


def is_enabled(device: str) -> bool:
    return _read(device, "disable_ipv6") == "0"


def enable(device: str, on: bool = True) -> None:
    """The interface may have an address of IPv6: net.ipv6.conf.default.disable_ipv6 says no on many hosts. Not `on`: no
    packet of IPv6 comes in by it or goes out."""
    _write(device, "disable_ipv6", "0" if on else "1")
