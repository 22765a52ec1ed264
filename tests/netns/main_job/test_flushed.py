"""Rules that somebody flushes are back at once, not at the next resync: that of this node is an hour away."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from agent.kernel.iptables.strangers import LEAST_SECONDS
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.readings import fetch
from tests.netns.main_job.picture import NODE
from tests.netns.main_job.test_filter_rules import CALL, rule

NAME = f"fl{os.getpid()}"
CLIENT = "c1"
BACK_SECONDS = LEAST_SECONDS + 3.0  # one repair may just have been
LEGACY = ("-t nat -F", "-F", "-t mangle -F")


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def flushed(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """With a customer who is connected."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Lab.up(NAME, nodes=1, clients=1, agent={"resync_seconds": 3600, "marks.backend": request.param})
    try:
        server = made.rest.post("wireguard")["name"]
        made.connect(CLIENT, made.rest.post("account", wg_name=server, b_download=20)["name"])
        yield made
    finally:
        Lab.down(NAME)


def passes(lab: Lab) -> bool:
    return fetch(lab, CLIENT, "/ip", seconds=0.5) is not None


def rules(lab: Lab) -> list[str]:
    """Ours, without what was counted."""
    listed = lab.exec(NODE, "iptables-legacy-save").stdout + lab.exec(NODE, "nft", "-t", "list", "ruleset").stdout
    return [line for line in listed.splitlines() if not line.startswith(("#", ":")) and "counter" not in line]


def test_what_is_flushed_is_back_at_once(flushed: Lab) -> None:
    wait_until(lambda: passes(flushed), "connected", 20.0)
    before = rules(flushed)
    is_legacy = any("WL_MARK" in line for line in before)
    for damage in ("nft flush ruleset", *(f"iptables-legacy {one}" for one in LEGACY if is_legacy)):
        flushed.exec(NODE, *damage.split())
        assert rules(flushed) != before
        wait_until(lambda: rules(flushed) == before, f"repaired after {damage}", BACK_SECONDS)
        wait_until(lambda: passes(flushed), "the client is back", BACK_SECONDS)


def test_what_a_rule_forbids_passes_for_a_moment_only(flushed: Lab) -> None:
    """Between the flush and the repair nothing of ours is there to forbid it: so it is a moment, not a minute."""
    flushed.rest.post(f"{CALL}/end", **rule("web"))
    try:
        assert not passes(flushed)
        for _ in range(3):
            flushed.exec(NODE, "nft", "flush", "ruleset")
            wait_until(lambda: not passes(flushed), "forbidden again", BACK_SECONDS)
    finally:
        flushed.rest.delete(f"{CALL}/web")
