"""What libnftables lists, in the words of several releases, and the commands for it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from agent.kernel.nftables import ruleset
from agent.kernel.nftables.forwarding import BY_A_PORT, CHAINS, FORWARD, INPUT, MSS, NAT, all_rules, guessed, sound
from agent.kernel.nftables.marks import CHAIN, IPV4, MARKS, TOWARDS
from agent.kernel.nftables.ruleset import Chain, Set, Writing, normal
from agent.model import CLOSED
from agent.objects import Forwarding

FIRST = Forwarding("wl0", IPv4Interface("10.66.0.1/24"), "up0", 51820, False, None)
SECOND = Forwarding("wl1", IPv4Interface("10.67.0.1/24"), "up0", 51821, True, IPv4Address("192.0.2.77"))

# As libnftables 1.0.6 lists it.
LISTING: list[dict[str, Any]] = [
    {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
    {"table": {"family": "ip", "name": "other", "handle": 1}},
    {"map": {"family": "ip", "name": "towards", "table": "other", "type": "ipv4_addr", "handle": 1, "map": "mark"}},
    {"table": {"family": "ip", "name": "wirelane", "handle": 2}},
    {
        "map": {
            "family": "ip",
            "name": "towards",
            "table": "wirelane",
            "type": "ipv4_addr",
            "handle": 1,
            "map": "mark",
            "size": 65536,
            "stmt": [{"counter": None}],
        }
    },
    {"counter": {"family": "ip", "name": "stray", "table": "wirelane", "handle": 9, "packets": 0, "bytes": 0}},
    {
        "chain": {
            "family": "ip",
            "table": "wirelane",
            "name": "marks",
            "handle": 3,
            "type": "filter",
            "hook": "postrouting",
            "prio": -149,
            "policy": "accept",
        }
    },
    {"chain": {"family": "ip", "table": "wirelane", "name": "loose", "handle": 4}},
    *(
        {
            "rule": {
                "family": "ip",
                "table": "wirelane",
                "chain": "marks",
                "handle": handle,
                "expr": [
                    *conditions,  # type: ignore[misc]
                    {
                        "mangle": {
                            "key": {"meta": {"key": "mark"}},
                            "value": {"map": {"key": {"payload": {"protocol": "ip", "field": field}}, "data": name}},
                        }
                    },
                ],
            }
        }
        for handle, field, name, conditions in (
            *(
                (
                    handle,
                    "saddr",
                    "@from",
                    [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": name}}],
                )
                for handle, name in ((7, "wg*"), (9, "ipsec0"))
            ),
            *(
                (
                    handle,
                    "daddr",
                    "@towards",
                    [
                        {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": name}},
                        {"match": {"op": "!=", "left": {"meta": {"key": "iif"}}, "right": 0}},
                    ],
                )
                for handle, name in ((8, "wg*"), (10, "ipsec0"))
            ),
        )
    ),
]


def test_a_table_is_found_among_others_with_all_that_is_in_it() -> None:
    table = ruleset.find(LISTING, "wirelane")
    assert table is not None
    assert table.chains == {MARKS: CHAIN, "loose": None}
    assert table.holds(TOWARDS) and not table.holds(IPV4.moved)
    assert table.has_rules(MARKS, IPV4.plain) and not table.has_rules(MARKS, IPV4.guarded)
    assert table.others == [("counter", "stray")]
    assert ruleset.find(LISTING, "nowhere") is None
    other = ruleset.find(LISTING, "other")
    assert other is not None and not other.holds(TOWARDS)


def test_strays_go_by_handle_sets_before_chains_before_the_rest() -> None:
    table = ruleset.find(LISTING, "wirelane")
    assert table is not None
    assert Writing("wirelane").delete_strays(table, [], [MARKS]) == [
        "delete set ip wirelane handle 1",
        "delete chain ip wirelane handle 4",
        "delete counter ip wirelane handle 9",
    ]


def test_releases_that_list_flags_and_states_in_other_words_say_the_same() -> None:
    flags = {"payload": {"protocol": "tcp", "field": "flags"}}
    states = {"ct": {"key": "state"}}
    for one, other in (
        ({"&": [flags, ["syn", "rst"]]}, {"&": [flags, {"|": ["rst", "syn"]}]}),
        (
            {"match": {"op": "in", "left": states, "right": ["established", "related"]}},
            {"match": {"op": "==", "left": states, "right": ["related", "established"]}},
        ),
        ({"stmt": [{"counter": None}]}, {"stmt": [{"counter": {"packets": 0, "bytes": 0}}]}),
    ):
        assert normal(one) == normal(other)
    assert normal({"match": {"op": "!=", "left": states, "right": 1}}) != normal(
        {"match": {"op": "==", "left": states, "right": 1}}
    )


def test_commands_are_what_an_administrator_would_write() -> None:
    write = Writing("t")
    assert write.add_chain("c", Chain("filter", "forward", -149)) == (
        "add chain ip t c { type filter hook forward priority -149; policy accept; }"
    )
    assert write.add_set(Set("set", "s", "type mark;", {})) == "add set ip t s { type mark; }"
    assert write.elements("add", "s", ["1", "2"]) == ["add element ip t s { 1, 2 }"]
    assert write.elements("add", "s", []) == []


def test_the_forwarding_rules_are_what_an_administrator_would_have_written() -> None:
    rules = all_rules([SECOND, FIRST])
    texts = {chain: [" ".join(piece.text for piece in rule) for rule in rules[chain]] for chain in CHAINS}
    assert texts[NAT] == [
        'ip saddr 10.66.0.0/24 oifname "up0" meta l4proto { tcp, udp } masquerade to :10000-32767 fully-random',
        'ip saddr 10.66.0.0/24 oifname "up0" masquerade',
        'ip saddr 10.67.0.0/24 oifname "up0" meta l4proto { tcp, udp } snat to 192.0.2.77:10000-32767 fully-random',
        'ip saddr 10.67.0.0/24 oifname "up0" snat to 192.0.2.77',
    ]
    assert texts[FORWARD][:10] == [
        'oifname "wg*" ct status dnat ct direction original ct state established,new accept',
        'oifname "ipsec0" ct status dnat ct direction original ct state established,new accept',
        'iifname "wg*" ct status dnat ct direction reply ct state established accept',
        'iifname "ipsec0" ct status dnat ct direction reply ct state established accept',
        'iifname "wl0" ct state invalid,related drop',
        f'iifname "wl0" oifname "up0" ip saddr 10.66.0.0/24 ip daddr != {{ {", ".join(map(str, CLOSED))} }} accept',
        'iifname "up0" oifname "wl0" ip daddr 10.66.0.0/24 ct state established,related accept',
        'iifname "wl0" oifname "wl0" drop',
        'iifname "wl0" drop',
        'oifname "wl0" drop',
    ]
    assert texts[FORWARD][13] == 'iifname "wl1" oifname "wl1" accept'
    assert texts[INPUT] == [
        'iifname "wl0" ct state established ct direction reply accept',
        'iifname "wl0" ip daddr 10.66.0.1/32 icmp type echo-request accept',
        'iifname "wl0" drop',
        'iifname "wl1" ct state established ct direction reply accept',
        'iifname "wl1" ip daddr 10.67.0.1/32 icmp type echo-request accept',
        'iifname "wl1" drop',
        'iifname != "wl0" udp dport 51820 accept',
        'iifname != "wl1" udp dport 51821 accept',
    ]
    assert texts[MSS][:1] == ['iifname "wl0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu']


def listed(*forwardings: Forwarding) -> dict[str, list[Any]]:
    rules = all_rules(forwardings)
    return {chain: [normal([piece.listed for piece in rule]) for rule in rules[chain]] for chain in CHAINS}


def test_forwardings_are_recognised_in_their_rules() -> None:
    assert sound(listed(FIRST, SECOND)) == {"wl0": FIRST, "wl1": SECOND}
    single = Forwarding("wl2", IPv4Interface("10.68.0.1/32"), "up0", 1, False, None)
    assert sound(listed(single)) == {"wl2": single}
    assert sound({}) == {}


def test_an_interface_whose_rules_are_not_all_right_is_left_out() -> None:
    for chain in CHAINS:
        first = len(BY_A_PORT) if chain == FORWARD else 0  # what is no interface's
        for doomed in range(first, len(listed(FIRST)[chain])):
            found = listed(FIRST, SECOND)
            found[chain].remove(listed(FIRST)[chain][doomed])
            port_gone = (chain, doomed) == (INPUT, 3)
            left = {"wl0": replace(FIRST, listen_port=0)} if port_gone else {}
            assert sound(found) == {"wl1": SECOND, **left}, (chain, doomed)
    found = listed(FIRST, SECOND)
    found[FORWARD].append(found[FORWARD][len(BY_A_PORT) + 3])
    assert sound(found) == {"wl1": SECOND}


def test_rules_of_others_are_no_trouble_to_guess_from() -> None:
    strange: list[Any] = [
        [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@some"}}],
        [{"snat": {"addr": {"map": {}}}}, {"accept": None}, "notrack"],
        [{"xt": None}],
    ]
    assert guessed(dict.fromkeys(CHAINS, strange)) == {}
