"""How many may come in: from one address, from all, and what is said of those who may not."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from gateway.http import admission
from gateway.http.admission import Admission, Place


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "CONNECTIONS", 6)
    monkeypatch.setattr(admission, "FROM_ONE_ADDRESS", 2)


def entered(one: Admission, *addresses: str) -> list[Place | None]:
    return [one.enter(address) for address in addresses]


@pytest.mark.parametrize(
    "same",
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"),
        ("fe80::1%eth0", "fe80::2%eth1", "fe80::3"),
        ("", "nonsense", "%"),
    ],
)
def test_one_address_has_its_own_bound(same: tuple[str, str, str]) -> None:
    one = Admission()
    first, second, third = entered(one, *same)
    assert first and second and third is None
    assert one.enter("198.51.100.7") and one.enter("2001:db8:0:1::1")
    first.leave()
    first.leave()
    assert one.enter(same[2]) is not None and one.enter(same[2]) is None


def test_a_trusted_proxy_speaks_for_many_but_not_for_more_than_there_may_be() -> None:
    one = Admission([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
    for place in entered(one, *["10.1.2.3"] * 3, *["fd00::1"] * 3):
        assert place
        place.is_known = True
    assert one.enter("192.0.2.1") is None


def test_where_the_house_is_full_the_oldest_stranger_makes_room() -> None:
    one, ended = Admission([ip_network("10.0.0.0/8")]), list[int]()
    places = entered(one, "10.1.2.3", *(f"192.0.2.{number}" for number in range(1, 6)))
    for number, place in enumerate(places):
        assert place is not None
        place.end = lambda number=number: ended.append(number)  # type: ignore[misc]
    proxy, first, known, *_ = places
    assert proxy and first and known
    proxy.is_known = known.is_known = True
    assert all(entered(one, "198.51.100.1", "198.51.100.2"))
    assert ended == [1, 3], "not those by which a right key came last"
    first.leave()  # when his connection is lost, a moment later
    proxy.begin()  # a request: whose?
    assert all(entered(one, *(f"198.51.100.{number}" for number in range(3, 7))))
    assert ended == [1, 3, 4, 5], "others have been strangers for longer"
    assert one.enter("198.51.100.7") and ended[4:] == [0], "what a proxy sends now is a stranger's too"
    assert all(entered(one, *(f"203.0.113.{number}" for number in range(1, 50)))), "nobody new is turned away"


def test_one_line_a_minute_whatever_comes(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    one = Admission(clock=lambda: now[0])
    entered(one, *["192.0.2.1"] * 500)
    assert len(caplog.records) == 1 and "count=1 addresses=1 most=192.0.2.1" in caplog.text
    now[0] = 61.0
    entered(one, *["192.0.2.1"] * 500)
    assert len(caplog.records) == 2 and "count=498 addresses=1 most=192.0.2.1 its_count=498 open=2" in caplog.text
