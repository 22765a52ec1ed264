"""A customer of both families, from the calls to the packets: one limit, one count, and nothing beside the tunnel."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.readings import WEB, WEB_IPV6, Download, came, came_by_ipv6, counters_at_rest, fetch, usage
from tests.netns.main_job.picture import NODE

NAME = f"six{os.getpid()}"
SOLD = 12  # Mbit/s
SECONDS = 6.0
NETWORK = "fd66:1::1/64"


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Lab.up(NAME, nodes=1, clients=2, ipv6=True, agent={"marks.backend": request.param})
    try:
        yield made
    finally:
        Lab.down(NAME)


@pytest.fixture
def account(lab: Lab) -> Iterator[dict[str, Any]]:
    """Of a server with NAT66, connected by its configuration text."""
    server = lab.rest.post("wireguard", ipv6="1", address_ipv6=NETWORK, nat_ipv6="1")["name"]
    made = lab.rest.post("account", wg_name=server, b_download=SOLD, b_upload=SOLD)
    lab.connect("c1", made["name"])
    yield made
    lab.disconnect("c1")
    lab.rest.delete(f"account/{made['name']}")
    lab.rest.delete(f"wireguard/{server}")


def test_it_reaches_both_internets_by_its_node_only(lab: Lab, account: dict[str, Any]) -> None:
    node = lab.host(NODE)
    assert node.ipv6
    assert (fetch(lab, "c1", "/ip") or "").strip() == str(node.address.ip)
    assert (fetch(lab, "c1", "/ip", web=WEB_IPV6) or "").strip() == str(node.ipv6.ip)
    lab.rest.put(f"account/{account['name']}", status="disable")
    assert fetch(lab, "c1", "/ip", 1.0) is None and fetch(lab, "c1", "/ip", 1.0, web=WEB_IPV6) is None
    lab.rest.put(f"account/{account['name']}", status="enable")
    wait_until(lambda: fetch(lab, "c1", "/ip", 1.0, web=WEB_IPV6) is not None, "back", 10.0)


def test_both_families_share_one_limit_and_one_sum(lab: Lab, account: dict[str, Any]) -> None:
    name = account["name"]
    with Download(lab, "c1", "1G"), Download(lab, "c1", "1G", WEB_IPV6):
        time.sleep(1.0)
        first, first_ipv6, began = came(lab, "c1"), came_by_ipv6(lab, "c1"), time.monotonic()
        time.sleep(SECONDS)
        last, last_ipv6, took = came(lab, "c1"), came_by_ipv6(lab, "c1"), time.monotonic() - began
    rate, share = (last - first) * 8 / 1e6 / took, (last_ipv6 - first_ipv6) / (last - first)
    assert SOLD * 0.93 < rate < SOLD * 1.02
    assert 0.02 < share < 0.98, "both go on"
    counted = counters_at_rest(lab.rest, name)
    assert usage(lab.rest, name) == (counted.download_bytes, counted.upload_bytes)
    assert counted.download_bytes > (last - first) * 0.95


def test_both_families_are_counted(lab: Lab, account: dict[str, Any]) -> None:
    """Packets that Linux has joined on their way (GRO) have one header where the client sees many."""
    before = counters_at_rest(lab.rest, account["name"]).download_bytes
    for web in (WEB, WEB_IPV6):
        got = came(lab, "c1")
        with Download(lab, "c1", "200k", web) as running:
            assert running.finished(20.0) == 200_000
        after = counters_at_rest(lab.rest, account["name"])
        assert 200_000 < after.download_bytes - before <= came(lab, "c1") - got
        assert usage(lab.rest, account["name"]) == (after.download_bytes, after.upload_bytes)
        before = after.download_bytes
