"""The units under a real systemd: both services start, an account connects, and each process writes what it must only.

One boot for the whole module: booted_guest.py acts in it and writes down what it saw.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BOOTED_SECONDS = 240  # a tenth of it where nothing else runs

pytestmark = pytest.mark.timeout(BOOTED_SECONDS + 60)

NEEDED = {
    "agent": {
        "/proc/sys/net/ipv4/conf/uplink/forwarding", "/proc/sys/net/ipv4/conf/wg1/forwarding",
        "/sys/class/net/wg1/threaded", "/run/xtables.lock", "/run/wireguard", "/run/wirelane-agent",
        "/var/lib/wirelane-agent", "/dev/net/tun", "/tmp",
    },
    "gateway": {"/var/lib/wirelane-gateway", "/tmp"},
}  # fmt: skip


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = tmp_path_factory.mktemp("booted")
    guest = ["/opt/wirelane/.venv/bin/python", "/opt/wirelane/checkout/tests/system/booted_guest.py"]
    done = subprocess.run(
        [ROOT / "tests/system/booted.sh", folder, *guest, "/run/booted/facts.json"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BOOTED_SECONDS, check=False,
    )  # fmt: skip
    shown = [path.read_text(errors="replace") for name in ("console", "output") if (path := folder / name).exists()]
    print(done.stderr, *shown, sep="\n")  # pytest shows it with the first test that fails
    assert (folder / "facts.json").exists(), f"booted.sh: status {done.returncode}"
    content: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    assert content["error"] == ""
    return content


def test_both_services_run_and_the_node_does_what_is_asked(facts: dict[str, Any]) -> None:
    assert facts["active"] == ["active", "active"]
    assert facts["status"]["status"] == "OK"
    assert [node["problem"] for node in facts["status"]["nodes"]] == [""]


def test_an_account_connects_and_keeps_its_link_over_a_restart(facts: dict[str, Any]) -> None:
    assert int(facts["dump"]["latest_handshake"]) > 0
    assert int(facts["dump"]["transfer_rx"]) > 0
    assert facts["links_after"] == facts["links"]


@pytest.mark.parametrize("process", ["agent", "gateway"])
def test_a_process_writes_what_it_must_and_nothing_else(facts: dict[str, Any], process: str) -> None:
    probed: dict[str, str] = facts["probed"][process]
    assert {path for path, refusal in probed.items() if not refusal} == NEEDED[process]
    refused = {path: refusal for path, refusal in probed.items() if refusal}
    assert len(refused) >= 10
    assert set(refused.values()) <= {"EROFS", "EACCES", "EPERM"}, refused  # each of them is there


def test_the_agent_finds_every_door_to_full_root_read_only(facts: dict[str, Any]) -> None:
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/fs/suid_dumpable", "/proc/sys/vm/drop_caches", "/run"):
        assert facts["probed"]["agent"][path] == "EROFS"


def test_the_key_may_be_a_credential_which_commands_read_too(facts: dict[str, Any]) -> None:
    assert facts["private_key_kept"]
    assert "me" in facts["keys"]


def test_an_account_comes_in_by_ikev2_too(facts: dict[str, Any]) -> None:
    assert facts["ikev2"] == {"is_in": True, "online": ["anna"], "failures": [], "problem": ""}


def test_the_gateway_tells_of_its_host(facts: dict[str, Any]) -> None:
    assert int(facts["system"]["memory_total"]) > 0 and facts["system"]["cpu_model"]
