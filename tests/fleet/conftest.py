"""One fleet for the tests of this folder: three nodes, two gateways, PostgreSQL, three customers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.cluster import why_missing
from tests.fleet.run import fleet
from tests.lab.lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if reason := why_missing():
        pytest.skip(reason)
    with fleet(nodes=3, clients=3, keep=Path(f"/tmp/wirelane-fleet-{os.getpid()}-logs")) as made:
        yield made
