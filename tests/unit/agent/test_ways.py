"""In which order ways out are opened and closed, as values. What a pass makes of it: test_writer.py."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface

from agent.objects import Diff, Forwarding
from agent.ways import closed

OPEN = Forwarding("wg1", IPv4Interface("10.0.1.1/24"), "eth0", 51821, False, None)
SHUT = replace(OPEN, uplink="", listen_port=50_001)  # as it is wanted while there is no uplink
NOBODYS = replace(OPEN, interface="wg9", listen_port=51829)


def test_all_ways_are_closed_and_every_link_keeps_the_port_that_it_has() -> None:
    new = replace(SHUT, interface="wg2")
    found = closed({"wg1": SHUT, "wg2": new}, {"wg1": OPEN, "wg9": NOBODYS})
    assert found == Diff(
        change={
            "wg1": replace(SHUT, listen_port=OPEN.listen_port),
            "wg2": replace(new, listen_port=0),  # nobody knows whether it listens
            "wg9": replace(NOBODYS, uplink=""),
        }
    )


def test_what_stands_closed_is_left_alone() -> None:
    damaged = {"": replace(OPEN, interface="")}  # as rules without a way out read
    assert closed({"wg1": SHUT}, {}) == closed({"wg1": SHUT}, damaged) == Diff()
    assert closed({}, {**damaged, "wg9": NOBODYS}) == Diff(change={"wg9": replace(NOBODYS, uplink="")})
