"""One lab for all tests of the main job. Its server and accounts are made over REST; nothing is done by hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.lab import Lab

NAME = f"mj{os.getpid()}"
POSTGRESQL = os.environ.get("WIRELANE_TEST_DATABASE") == "postgresql"  # then the lab is a fleet of one node
RESYNC_SECONDS = 5
Account = dict[str, Any]
MakeAccount = Callable[..., Account]


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One node, three clients. Resync is quick, so that a test of repair need not wait for a minute."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Lab.up(NAME, nodes=1, clients=3, postgresql=POSTGRESQL, agent={"resync_seconds": RESYNC_SECONDS})
    try:
        yield made
    finally:
        # What agent and gateway said is worth keeping only if something went wrong.
        Lab.down(NAME, keep_logs=Path(f"/tmp/{NAME}-logs") if request.session.testsfailed else None)


@pytest.fixture
def server(lab: Lab) -> Iterator[str]:
    """A fresh server; its accounts are deleted with it."""
    name = str(lab.rest.post("wireguard")["name"])
    try:
        yield name
    finally:
        lab.start_agent("n1")
        lab.start_gateway()
        for client in lab.plan.clients:
            lab.disconnect(client.name)
        for account in lab.rest.get(f"wireguard/{name}/peers"):
            lab.rest.delete(f"account/{account}")
        lab.rest.delete(f"wireguard/{name}")


@pytest.fixture
def make_account(lab: Lab, server: str) -> MakeAccount:
    """`make_account(b_download=20, ...)`: the account object."""

    def make(**values: object) -> Account:
        made: Account = lab.rest.post("account", **{"wg_name": server, **values})
        return made

    return make
