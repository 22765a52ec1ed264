"""The rules of a server as values: what is wanted, and what is recognised."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest

from agent.kernel.iptables import entries
from agent.kernel.iptables.forwarding import BY_A_PORT, FORWARD, INPUT, NAT, all_rules, guessed, sound, wanted_rules
from agent.model import Reach
from agent.objects import Forwarding, Opening

FIRST = Forwarding("wg1", IPv4Interface("10.66.0.1/24"), "up0", 51820, False, None)
SECOND = Forwarding("wg0", IPv4Interface("10.67.0.1/24"), "up0", 51821, True, IPv4Address("192.0.2.77"))


@pytest.mark.parametrize("stateful", [True, False])
def test_what_is_wanted_is_recognised(stateful: bool) -> None:
    rules = all_rules([FIRST, SECOND], stateful)
    assert sound(rules, stateful) == {"wg0": SECOND, "wg1": FIRST}
    assert sound(rules, not stateful) == {}


def test_the_order_of_interfaces_does_not_depend_on_the_order_of_asking() -> None:
    assert all_rules([FIRST, SECOND], True) == all_rules([SECOND, FIRST], True)


def test_without_conntrack_the_answers_are_let_through_by_address_alone() -> None:
    answers = wanted_rules(FIRST, False)[FORWARD.chain][1]
    assert answers == entries.entry(entries.jump("ACCEPT"), destination=FIRST.network, came_in="up0", goes_out="wg1")


def test_no_tunnel_reaches_the_port_of_any_server() -> None:
    rules = all_rules([FIRST, SECOND], True)[INPUT.chain]
    closed = [rule for rule in rules if entries.target_name(rule) == "DROP"]
    assert {entries.in_interface(rule) for rule in closed} == {"wg0", "wg1"}
    assert max(map(rules.index, closed)) < min(rules.index(rule) for rule in rules if entries.udp_port(rule))


def test_what_is_opened_of_the_box_is_not_taken_for_the_port_of_a_server() -> None:
    opened = (Opening("tcp", 53), Opening("udp", 53))
    rules = all_rules([FIRST, SECOND], True, opened)
    assert sound(rules, True, opened) == {"wg0": SECOND, "wg1": FIRST}
    assert all_rules(sound(rules, True).values(), True) != rules, "once closed again it has to go"


@pytest.mark.parametrize("chain", [NAT.chain, FORWARD.chain, INPUT.chain])
def test_an_interface_without_one_of_its_rules_is_not_sound_and_the_other_still_is(chain: str) -> None:
    rules = dict(all_rules([FIRST, SECOND], True))
    mine = wanted_rules(FIRST, True)[chain]
    for gone in mine:
        left = sound(rules | {chain: tuple(rule for rule in rules[chain] if rule != gone)}, True)
        without_port = {"wg1": replace(FIRST, listen_port=0)} if entries.is_not_in(gone) else {}
        assert left == {"wg0": SECOND, **without_port}


def test_a_rule_that_is_there_twice_or_out_of_order_makes_its_interface_unsound() -> None:
    rules = dict(all_rules([FIRST], True))
    chain = rules[FORWARD.chain][len(BY_A_PORT) :]
    assert sound(rules | {FORWARD.chain: (*chain, chain[3])}, True) == {}
    assert sound(rules | {FORWARD.chain: (chain[3], *chain[:3], *chain[4:])}, True) == {}


def test_a_guess_follows_what_the_rules_say() -> None:
    changed = replace(FIRST, internal_traffic=True, listen_port=9, external_ip=IPv4Address("192.0.2.1"))
    changed = replace(changed, reach=Reach.parse("internet,10.0.0.0/8"))
    assert guessed(all_rules([changed], True)) == {"wg1": changed}
