"""Whose failure a refusal is, and which refusals stand after an answer."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface

import pytest

from gateway.agents.codec import patch_request
from gateway.decision import LARGEST_PATCH
from gateway.filter_rules import MOST
from gateway.model import Applied, Failure, Patch, Responder, Secret, Server, Snapshot
from gateway.outcome import SERVER_WEIGHT, outcome, size, standing, weight

ACCOUNT, OTHER = Failure(1, "a1", "no room"), Failure(2, "a2", "no room")
SERVER, NODE = Failure(0, "s1", "no port"), Failure(0, "", "no uplink")
PATCH = Patch("e", 3, 4, remove_accounts=(1,), remove_servers=("s1",))


@pytest.mark.parametrize(
    ("failures", "about", "expected"),
    [
        ([], {1, "s1"}, "applied"),
        ([ACCOUNT], {1}, "failed"),
        ([ACCOUNT], {2, "s1", "a1"}, "applied"),
        ([SERVER], {1, "s1"}, "failed"),
        ([SERVER], {1, "s2"}, "applied"),
        ([NODE], {1}, "failed"),
        ([NODE], (), "failed"),
        ([OTHER, ACCOUNT], {1}, "failed"),
    ],
)
def test_a_refusal_is_the_failure_of_who_asks_about_it(
    failures: list[Failure], about: set[int | str], expected: str
) -> None:
    assert outcome(failures, about) == expected


def test_of_what_was_sent_the_answer_knows_better() -> None:
    known = (ACCOUNT, OTHER, SERVER)
    assert standing(known, PATCH, Applied("applied", "e", 4)) == (OTHER,)
    assert standing(known, PATCH, Applied("failed", "e", 4, (ACCOUNT,))) == (OTHER, ACCOUNT)
    assert standing(known, Snapshot(4, (), ()), Applied("failed", "e", 4, (NODE,))) == (NODE,)


def test_an_agent_that_was_not_done_takes_nothing_back() -> None:
    assert standing((ACCOUNT, NODE), PATCH, Applied("pending", "e", 4, (ACCOUNT,))) == (ACCOUNT, NODE)


def test_a_patch_is_as_large_as_its_changes() -> None:
    assert (size(PATCH), size(Patch("e", 3, 4))) == (2, 0)


def test_the_longest_patch_fits_into_a_message() -> None:
    end = "2001:db8:1111:2222:3333:4444:5555:6666/128"
    rules = (("rule", True, end, end, "icmp", 65_535, 65_535),) * MOST
    pem = "x" * 2_500  # of a certificate for 3,072 bits; a key is as long
    server = Server(
        *(1, "n", "s" * 64, "wg1234567890", Secret("k" * 44), "k" * 44, 51820, IPv4Interface("10.64.0.1/16")),
        reach="internet",
        filter=rules,
        responder=Responder(pem, Secret(pem), pem, "vpn.example.com"),
    )
    patch = Patch("e", 1, 2, put_servers=(server,) * (LARGEST_PATCH // SERVER_WEIGHT))
    assert weight(patch) <= LARGEST_PATCH < weight(replace(patch, put_servers=(*patch.put_servers, server)))
    assert size(patch) == len(patch.put_servers) > 100
    assert patch_request(patch, 0).ByteSize() < 4 * 1024 * 1024
