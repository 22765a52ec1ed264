"""Flowtables as they are listed: this kernel may have none."""

from __future__ import annotations

from typing import Any

import pytest

from agent.kernel.nftables import foreign


def listed(dev: Any, family: str = "inet", table: str = "wall") -> list[dict[str, Any]]:
    of = {"family": family, "name": "ft", "table": table, "handle": 2, "hook": "ingress", "prio": 0, "dev": dev}
    return [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": family, "name": table}}, {"flowtable": of}]


@pytest.mark.parametrize(
    ("dev", "named"),
    [("wg1", "wg1"), (["eth0", "wg1"], "eth0, wg1"), (["eth0", "eth1"], "eth0"), ("eth1", ""), ([], "")],
)
@pytest.mark.parametrize("family", ["ip", "inet"])
def test_a_flowtable_with_our_devices_is_a_problem_of_the_node(dev: Any, named: str, family: str) -> None:
    told = foreign.problem(foreign.parse(listed(dev, family), {}), ("wg1", "wg2", "eth0"))
    if not named:
        assert told == ""
        return
    assert told.startswith(f"the nftables flowtable {family} wall ft takes {named}: connections pass unlimited")
    assert "Cure: " in told and f"nft list flowtable {family} wall ft" in told
