"""The batch makes what was shown, in an order in which it can be made."""

from __future__ import annotations

from typing import Any

from bench.rivals import Shelled, tc_commands

QDISCS: list[dict[str, Any]] = [
    {"kind": "htb", "handle": "1:", "root": True, "options": {"r2q": 22348, "default": "0"}},
    {"kind": "bfifo", "handle": "100:", "parent": "1:100", "options": {"limit": 80536}},
]
CLASSES = (
    "class htb 1:100 root leaf 100: prio 0 quantum 3028 rate 5Mbit ceil 6Mbit linklayer ethernet "
    "burst 15Kb/1 mpu 0b cburst 16Kb/1 mpu 0b level 0 \n"
)
FILTERS = (
    "filter parent 1: protocol all pref 1 bpf chain 0 \n"
    "filter parent 1: protocol all pref 1 bpf chain 0 handle 0x1 not_in_hw bytecode '1,6 0 0 0'\n"
)


def test_classes_come_after_their_qdisc_and_leaves_after_their_classes() -> None:
    assert tc_commands("wg1", QDISCS, CLASSES, FILTERS) == [
        "qdisc add dev wg1 root handle 1: htb r2q 22348 default 0",
        "filter add dev wg1 parent 1: protocol all prio 1 bpf bytecode '1,6 0 0 0'",
        "class add dev wg1 parent 1: classid 1:100 htb rate 5Mbit ceil 6Mbit burst 15Kb cburst 16Kb quantum 3028",
        "qdisc add dev wg1 parent 1:100 handle 100: bfifo limit 80536",
    ]


def test_what_was_not_measured_is_carried_and_marked() -> None:
    shelled = Shelled({100: 3.0, 1_000: 30.0})
    assert shelled.at(1_000) == (30.0, False)
    seconds, carried = shelled.at(10_000)
    assert carried and 299 < seconds < 301
