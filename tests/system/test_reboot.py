"""A node that lost its power comes back by its own file alone: Debian's own kernel is booted twice.

reboot_guest.py acts in both boots and writes down what it saw; here is what both of them have to find.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GUEST_SECONDS = 300  # a third of it where nothing else runs
SOLD = 2.0  # Mbit/s, guest.py's RATE
LOWEST, HIGHEST = 1.4, 2.1

pytestmark = pytest.mark.timeout(2 * (GUEST_SECONDS + 120))

BOOTS = ("first", "second")


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Facts by the name of the boot."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = tmp_path_factory.mktemp("reboot")
    found = {}
    for boot in BOOTS:
        facts = folder / f"{boot}.json"
        command = [str(ROOT / "scripts/vm"), "--seconds", str(GUEST_SECONDS), "--share", str(folder), "--"]
        guest = [str(ROOT / ".venv/bin/python"), "tests/system/reboot_guest.py", str(facts), str(folder), boot]
        done = subprocess.run(
            [*command, *guest], cwd=ROOT, capture_output=True, text=True, timeout=GUEST_SECONDS + 90, check=False
        )
        print(done.stdout, done.stderr)  # pytest shows it with the first test that fails
        assert facts.exists(), f"scripts/vm: status {done.returncode}\n{done.stderr[-4000:]}"
        found[boot] = json.loads(facts.read_text())
        assert found[boot]["error"] == ""
    return found


@pytest.mark.parametrize("boot", BOOTS)
def test_the_customer_is_served_on_both_families(boots: dict[str, Any], boot: str) -> None:
    assert boots[boot]["reached"] and boots[boot]["reached_by_ipv6"]
    assert LOWEST < boots[boot]["download"] < HIGHEST


@pytest.mark.parametrize("boot", BOOTS)
def test_the_ports_of_the_node_lead_to_the_customer(boots: dict[str, Any], boot: str) -> None:
    assert boots[boot]["led"] == {"tcp": True, "udp": True}


@pytest.mark.parametrize("boot", BOOTS)
def test_what_a_rule_forbids_does_not_pass(boots: dict[str, Any], boot: str) -> None:
    assert boots[boot]["forbidden"]


def test_nothing_was_there_before_the_agent_and_nobody_was_asked(boots: dict[str, Any]) -> None:
    assert boots["second"]["rules_before"] == ""
    assert boots["second"]["failures"] == []
    assert boots["second"]["epoch"] == boots["first"]["epoch"]


def test_what_was_counted_before_is_not_lost_and_goes_on(boots: dict[str, Any]) -> None:
    assert boots["second"]["counted"] > boots["first"]["counted"] > SOLD * 1e6
