"""The tree of chains: where an address belongs, and what is noticed when something in it is wrong."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kernel.iptables.entries import Image, entry, jump
from agent.kernel.iptables.marktree import (
    DIRECTIONS,
    FROM,
    TO,
    Direction,
    is_own,
    leaf_rules,
    read_branch,
    standing_rules,
)
from tests.unit.agent.tables import image

ADDRESS = IPv4Address("10.64.1.42").packed
LEAF = "WL_TO_10.64.1.32/28"
NODES = ["WL_TO_10.64.0.0/20", "WL_TO_10.64.1.0/24", LEAF]


def tree(*rules: bytes, **changed: list[bytes]) -> Image:
    """The way to `ADDRESS`, with these rules in its leaf. Keyword: level0 to level2, rules of the chain above it."""
    chains = {
        chain: changed.get(f"level{level}", [TO.goto(child)])
        for level, (chain, child) in enumerate(zip([TO.root, *NODES], NODES, strict=False))
    }
    return image({"FORWARD": []}, {**chains, LEAF: [*rules]})


@given(st.integers(0, 2**32 - 1), st.sampled_from(DIRECTIONS))
def test_the_way_up_from_any_address_ends_at_the_root_in_three_steps(number: int, direction: Direction) -> None:
    chain: str | None = direction.leaf(IPv4Address(number).packed)
    assert chain is not None and direction.leaf_prefix(chain) == number & ~15
    way = []
    while chain is not None:
        assert is_own(chain) and len(chain) <= 28
        way.append(chain)
        chain = direction.parent(chain)
    assert len(way) == 4 and way[-1] == direction.root


@pytest.mark.parametrize(
    "name",
    [
        "WL_TO_10.64.1.33/28",
        "WL_TO_10.64.1.32/27",
        "WL_TO_010.64.1.32/28",
        "WL_TO_x",
        "WL_TO_",
        "WL_FROM_10.64.1.32/28",
    ],
)
def test_a_name_that_is_not_of_the_tree_has_no_place_in_it(name: str) -> None:
    assert TO.parent(name) is None
    assert TO.leaf_prefix(name) is None


def test_chains_of_other_parts_are_not_ours() -> None:
    assert not any(is_own(name) for name in ("WL_MSS", "WL_FORWARD", "WL_TOX", "WL_MARKS", "FORWARD", "wl_mark"))


def test_a_whole_branch_gives_its_rules_with_counters() -> None:
    branch = read_branch(tree(TO.mark(ADDRESS, 109, 3, 400)), TO)
    assert branch.rules == {ADDRESS: (ADDRESS, 109, 3, 400)}
    assert branch.whole and not branch.repeated and not branch.unreached


@pytest.mark.parametrize(
    "found",
    [
        tree(),
        tree(TO.mark(ADDRESS, 109), entry(jump("RETURN"))),
        tree(TO.mark(ADDRESS, 109), TO.mark(ADDRESS, 109)),
        tree(TO.mark(ADDRESS, 109), FROM.mark(ADDRESS, 109)),
        tree(TO.mark(ADDRESS, 109), TO.mark(IPv4Address("10.64.1.31").packed, 110)),
        tree(TO.mark(ADDRESS, 109), level0=[TO.goto(NODES[0]), TO.goto(NODES[0])]),
        tree(TO.mark(ADDRESS, 109), level0=[TO.goto(NODES[0]), entry(jump("ACCEPT"))]),
    ],
    ids=["empty leaf", "strange rule", "twice", "other direction", "wrong leaf", "goto twice", "strange rule above"],
)
def test_a_branch_with_anything_wrong_in_it_is_not_whole(found: Image) -> None:
    assert not read_branch(found, TO).whole


@pytest.mark.parametrize("level", [0, 1, 2])
def test_rules_that_nothing_leads_to_are_told_apart(level: int) -> None:
    branch = read_branch(tree(TO.mark(ADDRESS, 109), **{f"level{level}": [entry(jump(NODES[level]))]}), TO)
    assert branch.unreached == {ADDRESS}
    assert branch.rules.keys() == {ADDRESS}
    assert not branch.whole


def test_of_two_rules_for_an_address_the_one_that_has_stood_longer_counts() -> None:
    found = tree(TO.mark(ADDRESS, 109, 1, 100), TO.mark(ADDRESS, 109, 9, 900), TO.mark(ADDRESS, 109, 5, 500))
    assert standing_rules(found, TO) == {ADDRESS: (ADDRESS, 109, 9, 900)}
    assert read_branch(found, TO).repeated == {ADDRESS}


def test_strange_rules_in_a_leaf_do_not_hide_ours() -> None:
    found = tree(entry(jump("ACCEPT"), match=bytes(48)), TO.mark(ADDRESS, 109))
    assert leaf_rules(found, TO, LEAF) == [(None, 0, 0, 0), (ADDRESS, 109, 0, 0)]
