"""gateway/allocate.py: free ranges against a plain set of numbers; names, addresses, numbered servers."""

from __future__ import annotations

import re
import secrets
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import pairwise

import pytest
from hypothesis import given as given_any
from hypothesis import strategies as st

from gateway import allocate
from gateway.allocate import NetworkSet, Range

NUMBERS = st.integers(min_value=0, max_value=40)


def as_set(ranges: list[Range]) -> set[int]:
    return {number for part in ranges for number in range(part.lo, part.hi + 1)}


def is_tidy(ranges: list[Range]) -> bool:
    """Ascending, none empty, none touching the next."""
    pairs = pairwise(ranges)
    return all(part.lo <= part.hi for part in ranges) and all(a.hi + 1 < b.lo for a, b in pairs)


def take(ranges: list[Range], number: int) -> list[Range]:
    found = next(part for part in ranges if number in part)
    return sorted([part for part in ranges if part != found] + list(allocate.without([found], [number])))


def give(ranges: list[Range], number: int) -> list[Range]:
    melted, together = allocate.given(ranges, number)
    return sorted([part for part in ranges if part not in melted] + [together])


@given_any(st.lists(NUMBERS, max_size=120))
def test_ranges_hold_what_a_set_holds_whatever_is_taken_and_given_back(numbers: list[int]) -> None:
    ranges, free = [Range(0, 40)], set(range(41))
    for number in numbers:
        if number in free:
            ranges = take(ranges, number)
            free.remove(number)
        else:
            ranges = give(ranges, number)
            free.add(number)
        assert as_set(ranges) == free
        assert is_tidy(ranges)


@given_any(st.sets(NUMBERS))
def test_giving_back_in_any_order_makes_one_range_again(used: set[int]) -> None:
    ranges = allocate.without([Range(0, 40)], used)
    assert as_set(ranges) == set(range(41)) - used and is_tidy(ranges)
    for number in used:
        ranges = give(ranges, number)
    assert ranges == [Range(0, 40)]


@given_any(st.sets(NUMBERS), NUMBERS)
def test_giving_back_what_is_free_changes_nothing(used: set[int], number: int) -> None:
    ranges = allocate.without([Range(0, 20), Range(30, 40)], used)
    if any(number in part for part in ranges):
        assert give(ranges, number) == ranges


@given_any(st.sets(NUMBERS), st.lists(NUMBERS))
def test_numbers_that_have_rested_melt_with_the_ranges_beside_them(used: set[int], rested: list[int]) -> None:
    ranges = allocate.without([Range(0, 20), Range(30, 40)], used)
    joined = allocate.together(ranges, rested)
    assert as_set(joined) == as_set(ranges) | set(rested) and is_tidy(joined)


def test_what_rests_is_taken_only_where_nothing_else_is_left_and_the_longest_rested_first() -> None:
    free, taken = allocate.Free([Range(5, 5)], resting=[9, 7, 8]), []
    free.take(7)  # somebody asked for it
    for _ in range(3):
        taken.append(number := free.lowest())
        free.take(number or 0)
    assert (taken, free.lowest()) == ([5, 9, 8], None)
    assert (free.changes(), free.others) == (([Range(5, 5)], []), {7, 8, 9})


@given_any(st.sets(NUMBERS), st.lists(st.one_of(st.none(), NUMBERS), max_size=60))
def test_whoever_takes_gets_the_lowest_or_the_named_number_and_the_changes_say_what_is_left(
    used: set[int], wishes: list[int | None]
) -> None:
    before = allocate.without([Range(0, 20), Range(30, 40)], used)
    free, left = allocate.Free(before), as_set(before)
    for wish in wishes:
        assert free.lowest() == min(left, default=None)
        number = free.lowest() if wish is None else wish
        if number is not None:
            free.take(number)
            left.discard(number)
    gone, new = free.changes()
    after = sorted([part for part in before if part not in gone] + new)
    assert set(gone) <= set(before) and not set(gone) & set(new)
    assert as_set(after) == left and is_tidy(after)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("peer_1", 1),
        ("peer_7", 7),
        ("peer_999999999", 999_999_999),
        ("peer_0", None),
        ("peer_007", None),
        ("peer_1000000000", None),
        ("peer_", None),
        ("peer_-1", None),
        ("peer_1_2", None),
        ("peer_٣", None),
        ("Peer_7", None),
        ("user_7", None),
        ("xpeer_7", None),
        ("peer", None),
        ("bob", None),
        ("123-456-text", None),
    ],
)
def test_only_the_names_that_could_be_generated_take_a_number(name: str, number: int | None) -> None:
    assert allocate.number_of("peer", name) == number


@given_any(st.integers(min_value=allocate.NAME_NUMBERS.lo, max_value=allocate.NAME_NUMBERS.hi))
def test_a_generated_name_gives_its_number_back(number: int) -> None:
    assert allocate.number_of("user", allocate.name_of("user", number)) == number


@pytest.mark.parametrize(
    ("server", "first", "last", "count"),
    [
        ("10.0.0.1/24", "10.0.0.2", "10.0.0.254", 253),
        ("10.0.0.254/24", "10.0.0.1", "10.0.0.253", 253),
        ("10.0.0.77/24", "10.0.0.1", "10.0.0.254", 253),
        ("10.0.0.1/30", "10.0.0.2", "10.0.0.2", 1),
        ("10.8.0.1/16", "10.8.0.2", "10.8.255.254", 65_533),
    ],
)
def test_network_broadcast_and_gateway_are_not_assignable(server: str, first: str, last: str, count: int) -> None:
    address = IPv4Interface(server)
    ranges = allocate.assignable(address)
    assert (ranges[0].lo, ranges[-1].hi) == (int(IPv4Address(first)), int(IPv4Address(last)))
    assert len(as_set(ranges)) == count
    network = address.network
    for outside in (network[0], network[-1], address.ip, network[0] - 1, network[-1] + 1):
        assert not allocate.is_assignable(address, outside)
    assert allocate.is_assignable(address, IPv4Address(first))


@pytest.mark.parametrize("server", ["10.0.0.1/32", "10.0.0.1/31"])
def test_a_network_of_one_or_two_has_no_room(server: str) -> None:
    assert allocate.assignable(IPv4Interface(server)) == []


@pytest.mark.parametrize(
    ("number", "name", "interface", "port", "address"),
    [
        (1, "Default_1", "wg1", 51821, "10.0.0.1/24"),
        (106, "Default_106", "wg106", 51926, "10.0.105.1/24"),  # the example of the specification
        (256, "Default_256", "wg256", 52076, "10.0.255.1/24"),
        (257, "Default_257", "wg257", 52077, "10.1.0.1/24"),
        (13_715, "Default_13715", "wg13715", 65535, "10.53.146.1/24"),
    ],
)
def test_servers_are_numbered_as_the_specification_does(
    number: int, name: str, interface: str, port: int, address: str
) -> None:
    expected = allocate.NumberedServer(name, interface, port, IPv4Interface(address))
    assert allocate.numbered_server(number) == expected


def test_the_lowest_server_number_that_is_wholly_free_is_taken() -> None:
    found = allocate.free_server(lambda server: server.listen_port > 51824)
    assert found is not None and found.name == "Default_5"
    assert allocate.free_server(lambda server: True) == allocate.numbered_server(1)
    assert allocate.free_server(lambda server: server.listen_port == 65535) == allocate.numbered_server(13_715)
    assert allocate.free_server(lambda server: server.listen_port > 65535) is None


def test_marks_never_share_a_class_minor() -> None:
    minors = [int(str(mark), 16) if mark <= 9999 else mark for part in allocate.MARKS for mark in (part.lo, part.hi)]
    assert minors == [0x100, 0x9999, 0xA000, 0xFFFE]
    assert sum(part.hi - part.lo + 1 for part in allocate.MARKS) == 34_475


def test_generated_passwords_are_those_of_the_specification_and_differ() -> None:
    made = {allocate.new_password() for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9*#%!@$&]{10}", password) for password in made)


def test_ids_differ_are_positive_and_fit_63_bits_however_the_dice_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({allocate.new_id() for _ in range(1000)}) == 1000
    for dice, made in ((lambda sides: 0, 1), (lambda sides: sides - 1, (1 << 63) - 1)):
        monkeypatch.setattr(secrets, "randbelow", dice)
        assert allocate.new_id() == made


def test_what_is_taken_is_found_among_thousands_in_no_time() -> None:
    many = [IPv4Network((10 << 24 | number << 9, 24)) for number in range(30_000)]  # every second one
    in_use = NetworkSet([*many, IPv4Network("10.0.0.0/30"), IPv4Network("192.168.0.0/16")])
    for text in (
        "10.0.0.0/24",
        "10.0.0.128/25",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "192.168.7.0/24",
        "10.0.2.9/32",
        "10.0.0.3/32",
    ):
        assert in_use.overlaps(IPv4Network(text)), text
    for text in ("10.0.1.0/24", "10.0.3.7/32", "172.16.0.0/12", "192.167.255.0/24", "192.169.0.0/24", "9.255.255.0/24"):
        assert not in_use.overlaps(IPv4Network(text)), text
    assert not NetworkSet([]).overlaps(IPv4Network("10.0.0.0/8"))
    assert NetworkSet([IPv4Network("10.0.0.0/30")]).overlaps(IPv4Network("10.0.0.3/32"))
