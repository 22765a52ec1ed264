"""What dies in the middle of a thousand creates loses no acknowledged one and makes none twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.fleet import crowd
from tests.fleet.run import cleared
from tests.lab.lab import Lab

CREATES = 1000
KERNEL_SECONDS = 10.0
DATABASE_AWAY_SECONDS = 5.0


@pytest.fixture
def node_of(lab: Lab) -> Iterator[dict[str, str]]:
    """A server on every node: its name and its node's."""
    cleared(lab)
    yield {str(lab.rest.post("wireguard", node=node.name)["name"]): node.name for node in lab.plan.nodes}
    lab.heal()
    cleared(lab)


def kill_a_gateway(lab: Lab) -> None:
    lab.kill_gateway("g1")


def kill_the_database(lab: Lab) -> None:
    lab.kill_database()
    time.sleep(DATABASE_AWAY_SECONDS)
    lab.start_database()


@pytest.mark.timeout(280)
@pytest.mark.parametrize("kill", [kill_a_gateway, kill_the_database])
def test_every_acknowledged_create_is_in_the_kernel_and_none_is_twice(
    lab: Lab, node_of: dict[str, str], kill: Callable[[Lab], None]
) -> None:
    made = crowd.create(lab, list(node_of), CREATES, lambda: kill(lab))
    seconds = crowd.are_in_the_kernel(lab, made, node_of, KERNEL_SECONDS)
    print(f"{len(made)} of {CREATES} acknowledged, all in the kernel {seconds:.1f} s later")
    assert CREATES // 3 <= len(made) < CREATES, "it died in the middle"
    assert crowd.held_twice(made) == []
    lab.start_gateway("g1")
    listed = {account["name"]: account for account in lab.rest_of("g2").get("account")}
    assert {name: listed.get(name) for name in made} == made
    assert crowd.held_twice(listed) == []
