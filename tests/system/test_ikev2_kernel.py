"""IKEv2 with the ESP of Debian's own kernel: an account's life, an agent restart, and programs that die under traffic.

One VM for the whole module: ikev2_guest.py acts in it and writes down what it saw, and the tests here ask for one thing
each. The namespace tests of IKEv2 run in the same VM afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.system.test_distribution_kernel import HIGHEST, LOWEST, ROOT

GUEST_SECONDS = 1100  # half of it where nothing else runs
pytestmark = pytest.mark.timeout(GUEST_SECONDS + 120)

SCRIPT = """
"$1" tests/system/ikev2_guest.py "$2/facts.json" || exit 1
"$1" -m pytest tests/netns/test_ikev2.py tests/netns/test_ikev2_ipv6.py -k \
  'kernel and (own_address or claimed or leaves_no_way_in or two_families and nftables or another_ones)' \\
  --timeout=300 -p no:cacheprovider --junitxml="$2/netns.xml" >&2
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guest left behind: facts.json and netns.xml."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = tmp_path_factory.mktemp("vm")
    command = [str(ROOT / "scripts/vm"), "--seconds", str(GUEST_SECONDS), "--share", str(folder), "--"]
    guest = ["bash", "-c", SCRIPT, "guest", str(ROOT / ".venv/bin/python"), str(folder)]
    done = subprocess.run(
        [*command, *guest], cwd=ROOT, capture_output=True, text=True, timeout=GUEST_SECONDS + 90, check=False
    )
    print(done.stdout, done.stderr)  # pytest shows it with the first test that fails
    assert (folder / "facts.json").exists(), f"scripts/vm: status {done.returncode}\n{done.stderr[-4000:]}"
    return folder


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared / "facts.json").read_text())
    assert content["error"] == ""
    return content


def test_the_agent_chooses_the_esp_of_the_kernel(facts: dict[str, Any]) -> None:
    assert facts["device"]["info_kind"] == "xfrm"
    name, number = facts["responder"]
    assert name.startswith("strongSwan ") and number > 0
    assert facts["states"] == facts["in_udp"] == 2, "the client is behind a NAT"


def test_an_account_logs_in_and_reaches_the_internet_by_its_node_only(facts: dict[str, Any]) -> None:
    assert not facts["reached_before_login"]
    assert facts["reached"]
    ((number, endpoint, established),) = facts["who"]
    assert (number, endpoint) == (1, "198.51.100.3") and established > 0


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_traffic_is_held_to_what_was_sold_and_counted_once(facts: dict[str, Any], direction: str) -> None:
    assert LOWEST <= facts[direction] <= HIGHEST
    sent = facts[direction] * 1e6 / 8 * 8  # bytes of the 8 measured seconds, without headers
    assert sent <= facts["totals"][direction] <= facts["counters"][f"{direction}_bytes"]


def test_an_agent_restart_touches_nothing_and_drops_no_session(facts: dict[str, Any]) -> None:
    restart = facts["restart"]
    assert restart["events"] == []
    assert restart["after"] == restart["before"]
    assert restart["before"]["processes"].keys() == {"charon", "freeradius"} and len(restart["before"]["states"]) == 2
    assert restart["drift"] == 0
    ((_, _, before),), ((_, _, after),) = restart["who"]
    assert abs(after - before) <= 1  # charon tells an age, in whole seconds
    assert restart["transfer_end"] == "interrupt - the client has terminated"  # by the guest, not by itself
    assert len(restart["interval_bytes"]) >= 3 and all(restart["interval_bytes"])


def test_a_disabled_account_is_out_when_the_answer_comes(facts: dict[str, Any]) -> None:
    disabled = facts["disabled"]
    assert disabled["outcome"] == disabled["enabled"] == "applied"
    assert disabled["left"] == [[], 0]
    assert disabled["who"] == [] and not disabled["reached"] and disabled["passed"] == 0
    assert disabled["reached_again"]


@pytest.mark.parametrize("program", ["charon", "freeradius"])
def test_a_program_that_dies_is_back_and_nobody_passes_by_what_it_left(facts: dict[str, Any], program: str) -> None:
    killed = facts[program]
    assert killed["stays"] == []
    assert not killed["reached_by_the_old_session"] and killed["passed_by_the_old_session"] == 0
    assert killed["ready_seconds"] < 60
    assert killed["reached_again"]
    assert killed["classes"] and LOWEST <= killed["shaped"] <= HIGHEST, "shaped as before"


def test_nothing_of_it_is_left_when_the_server_has_it_no_more(facts: dict[str, Any]) -> None:
    removed = facts["removed"]
    assert removed["outcome"] == "applied"
    assert "ipsec0" not in removed["links"] and "wg1" in removed["links"]
    assert removed["processes"] == [] and not removed["folder"]
    assert removed["states"] == [] and removed["policies"] == 0


def test_the_namespace_tests_of_ikev2_hold(shared: Path) -> None:
    cases = list(ElementTree.parse(shared / "netns.xml").iter("testcase"))
    assert [
        f"{case.get('name')}: {part.get('message')}" for case in cases for part in case if part.get("message")
    ] == []
    assert len(cases) == 6
