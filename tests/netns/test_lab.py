"""The lab keeps its promises: it is as described, passes commands through, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import hosts, registry
from tests.lab.connect import parse_config
from tests.lab.errors import LabError, NoHandshake, NoSuchLab
from tests.lab.lab import Lab
from tests.lab.processes import inside, marked, process, wait_until
from tests.lab.readings import fetch
from tests.lab.topology import HOST_PATTERN, topology

ROOT = Path(__file__).resolve().parents[2]
NAME = f"t{os.getpid()}"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def cli(*arguments: str, stdin: str = "", seconds: float = 90.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / "lab"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd="/usr",
    )


def traces(name: str) -> list[str]:
    """Whatever is still there of a lab."""
    namespaces = hosts.existing(name)
    processes = [*marked(name), *inside(hosts.NAMESPACES / found for found in namespaces)]
    folder = registry.folder(name)
    ours = re.compile(rf"{hosts.NAMESPACES}/{name}-{HOST_PATTERN} |{folder}[/ ]")
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if ours.search(line)]
    return [*namespaces, *(str(found.pid) for found in processes), *([str(folder)] if folder.exists() else []), *mounts]


@pytest.fixture(scope="module")
def described() -> Iterator[dict[str, Any]]:
    """A lab made by the command line; what it printed."""
    try:
        made = cli("up", "--name", NAME, "--nodes", "2")
        assert made.returncode == 0, made.stderr
        yield json.loads(made.stdout)
    finally:
        Lab.down(NAME)


@pytest.fixture
def lab(described: dict[str, Any]) -> Lab:
    return Lab.open(NAME)


@pytest.fixture
def account(lab: Lab) -> Iterator[str]:
    server = lab.rest.post("wireguard")["name"]
    name = lab.rest.post("account", wg_name=server)["name"]
    yield name
    lab.rest.delete(f"account/{name}")
    lab.rest.delete(f"wireguard/{server}")


# -- pure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nodes", "clients"), [("../x", 1, 1), ("", 1, 1), ("Wl", 1, 1), ("wl", 0, 1), ("wl", 1, -1)]
)
def test_a_lab_that_cannot_be_is_refused(name: str, nodes: int, clients: int) -> None:
    with pytest.raises(ValueError, match=r"lab name|nodes|clients"):
        topology(name, nodes, clients)


def test_every_host_has_an_address_of_its_own_outside_the_product_s_networks() -> None:
    plan = topology("wl", 63, 500, 16, postgresql=True)
    addresses = [host.address.ip for host in plan.hosts]
    assert len(set(addresses)) == 581
    assert not any(str(address).startswith("10.") for address in addresses)


def test_client_configuration_is_read_with_and_without_tabs_and_mtu() -> None:
    text = (
        "[Interface]\n\tAddress = 10.0.105.18/24\n\tDNS = 8.8.8.8,1.1.1.1\n\tPrivateKey = secret=\n\t\n"
        "[Peer]\n\tAllowedIPs = 0.0.0.0/0, ::/0\n\tEndpoint = 198.51.100.2:51926\n\tPublicKey = public=\n"
    )
    config = parse_config(text)
    assert [str(address) for address in config.addresses] == ["10.0.105.18/24"]
    assert (config.dns, config.mtu, config.endpoint) == (("8.8.8.8", "1.1.1.1"), None, "198.51.100.2:51926")
    assert [str(network) for network in config.networks] == ["0.0.0.0/0", "::/0"]
    assert parse_config(text.replace("[Peer]", "MTU = 1300\n[Peer]")).mtu == 1300
    with pytest.raises(LabError, match="no client configuration"):
        parse_config("[Interface]\n")


# -- up, status, exec ---------------------------------------------------------------------------------------------


@needs_root
def test_up_prints_one_json_object_that_is_true(described: dict[str, Any]) -> None:
    keys = {"url", "access_hash", "internet", "nodes", "clients", "gateway_pid", "gateways", "database", "state"}
    assert set(described) == keys
    assert [node["name"] for node in described["nodes"]] == ["n1", "n2"]
    assert [client["name"] for client in described["clients"]] == ["c1", "c2"]
    known = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True, timeout=10).stdout
    for host in (described["internet"], *described["nodes"], *described["clients"]):
        assert host["namespace"] in known
    for node in described["nodes"]:
        found = json.loads(Lab.open(NAME).exec(node["name"], "ip", "-json", "address", "show", node["uplink"]).stdout)
        assert node["public_ip"] in [item["local"] for item in found[0]["addr_info"]]
        assert Path(f"/proc/{node['agent_pid']}").is_dir()
    assert Lab.open(NAME).rest.get("account") == []


@needs_root
def test_status_prints_the_same_again(described: dict[str, Any]) -> None:
    assert json.loads(cli("status", "--name", NAME).stdout) == described


@needs_root
def test_the_gateway_has_no_privilege_and_secrets_are_closed(described: dict[str, Any]) -> None:
    status = Path(f"/proc/{described['gateway_pid']}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1"
    state = Path(described["state"])
    readable = [path for path in state.rglob("*") if path.is_file() and path.stat().st_mode & 0o077 and _secret(path)]
    assert readable == []
    assert state.stat().st_mode & 0o007 == 0


def _secret(path: Path) -> bool:
    return path.suffix in {".toml", ".db", ".key", ".log"} or path.name == "lab.json"


@needs_root
def test_exec_passes_input_output_exit_status_and_folder_through(described: dict[str, Any]) -> None:
    done = cli("exec", "--name", NAME, "c1", "--", "sh", "-c", "cat; pwd; echo to-stderr >&2; exit 42", stdin="hello\n")
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n/usr\n", "to-stderr\n", 42)


@needs_root
def test_hosts_have_their_own_links_and_their_own_run(lab: Lab) -> None:
    lab.exec("n1", "touch", "/run/mine")
    assert lab.exec("n2", "test", "-e", "/run/mine", check=False).returncode == 1
    assert not Path("/run/mine").exists()
    assert lab.exec("c2", "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]


@needs_root
def test_the_web_server_serves_any_size_and_takes_uploads(lab: Lab) -> None:
    size = ["curl", "-s", "-o", "/dev/null", "-w", "%{size_download}", "http://203.0.113.1/bytes/1234567"]
    assert lab.exec("c1", *size).stdout == "1234567"
    upload = ["curl", "-s", "-T", "-", "http://203.0.113.1/upload"]
    assert json.loads(lab.exec("c1", *upload, stdin="x" * 100_001).stdout) == {"received": 100_001}
    assert fetch(lab, "c1", "/ip") == f"{lab.host('c1').address.ip}\n"


@needs_root
def test_what_is_not_there_is_named(described: dict[str, Any]) -> None:
    for arguments, text in (
        (("exec", "--name", NAME, "n9", "--", "true"), "no host 'n9'"),
        (("stop", "--name", NAME, "agent", "c1"), "no node 'c1'"),
        (("connect", "--name", NAME, "n1", "x"), "no client 'n1'"),
        (("connect", "--name", NAME, "c1", "nobody"), "Account not found"),
        (("status", "--name", "absent"), "no lab 'absent'"),
    ):
        done = cli(*arguments)
        assert done.returncode == 1 and text in done.stderr and done.stdout == ""
    with pytest.raises(NoSuchLab):
        Lab.open("absent")


# -- stop, start, connect -----------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_agent_and_gateway_are_ended_and_started_again(lab: Lab, how: str) -> None:
    before = lab.agent_pid("n1"), lab.agent_pid("n2"), lab.gateway_pid()
    assert cli(how, "--name", NAME, "agent", "n1").returncode == 0
    assert (lab.agent_pid("n1"), lab.agent_pid("n2")) == (None, before[1])
    assert json.loads(cli("status", "--name", NAME).stdout)["nodes"][0]["agent_pid"] is None
    assert cli("start", "--name", NAME, "agent", "n1").returncode == 0
    assert lab.agent_pid("n1") not in (None, before[0])
    assert cli(how, "--name", NAME, "gateway").returncode == 0
    assert lab.gateway_pid() is None
    with pytest.raises(LabError):
        lab.rest.get("account")
    assert cli("start", "--name", NAME, "gateway").returncode == 0
    assert lab.rest.get("account") == []


@needs_root
def test_a_connected_client_sends_everything_through_the_tunnel(lab: Lab, account: str) -> None:
    public = lab.host("n1").address.ip
    assert cli("connect", "--name", NAME, "c1", account).returncode == 0
    assert fetch(lab, "c1", "/ip") == f"{public}\n"
    assert lab.handshake("c1") > 0
    routes = json.loads(lab.exec("c1", "ip", "-json", "route", "show", "default").stdout)
    assert [route["dev"] for route in routes] == ["wg0"]
    assert cli("disconnect", "--name", NAME, "c1").returncode == 0
    assert fetch(lab, "c1", "/ip") == f"{lab.host('c1').address.ip}\n"
    assert lab.exec("c1", "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]
    assert not lab.disconnect("c1")


@needs_root
def test_a_disabled_account_connects_without_handshake_and_says_so(lab: Lab, account: str) -> None:
    lab.rest.put(f"account/{account}", status="disable")
    done = cli("connect", "--name", NAME, "c2", account)
    assert (done.returncode, "no handshake" in done.stderr) == (3, True)
    assert fetch(lab, "c2", "/ip", seconds=2.0) is None
    with pytest.raises(NoHandshake):
        lab.connect("c2", account)
    assert lab.disconnect("c2")


# -- down ---------------------------------------------------------------------------------------------------------


@needs_root
def test_two_labs_stand_side_by_side_and_go_down_alone(described: dict[str, Any]) -> None:
    other = f"{NAME}-n1"  # its namespaces start like one of ours
    before = Lab.open(NAME).describe()
    try:
        second = Lab.up(other, clients=1)
        assert second.url != described["url"]
        server = second.rest.post("wireguard")["name"]
        second.rest.post("account", wg_name=server, name="mine")
        second.connect("c1", "mine")
        assert Lab.open(NAME).rest.get("account") == []
        with pytest.raises(LabError, match="already"):
            Lab.up(other)
    finally:
        Lab.down(other)
    assert traces(other) == []
    assert Lab.open(NAME).describe() == before


@needs_root
def test_down_after_kill_9_of_everything_leaves_nothing() -> None:
    name = f"{NAME}k"
    links = sorted(os.listdir("/sys/class/net"))
    try:
        lab = Lab.up(name, clients=1)
        server = lab.rest.post("wireguard")["name"]
        lab.rest.post("account", wg_name=server, name="mine")
        lab.connect("c1", "mine")
        killed = {*marked(name), *inside(hosts.NAMESPACES / found for found in hosts.existing(name))}
        assert len(killed) >= 10
        for victim in killed:
            os.kill(victim.pid, signal.SIGKILL)
    finally:
        assert Lab.down(name)
    assert traces(name) == []
    # The kernel may still be taking one apart that has no memory and no namespace left to be known by.
    wait_until(lambda: not any(victim.alive for victim in killed), "the end of what was killed", 5.0)
    assert sorted(os.listdir("/sys/class/net")) == links
    done = cli("down", "--name", name)
    assert (done.returncode, "there is none" in done.stderr) == (0, True)


@needs_root
def test_down_finds_processes_whose_records_are_lost() -> None:
    name = f"{NAME}r"
    try:
        lab = Lab.up(name, clients=1)
        gateway = process(lab.gateway_pid() or 0)
        for record in (lab.state / "processes").glob("*.json"):
            record.unlink()
        (lab.state / "lab.json").unlink()
    finally:
        assert Lab.down(name)
    assert gateway is not None and not gateway.alive
    assert traces(name) == []


@needs_root
def test_down_spares_what_only_looks_like_its_own() -> None:
    name, foreign = f"{NAME}s", f"{NAME}s-n1-x"
    subprocess.run(["ip", "netns", "add", foreign], check=True, timeout=10)
    sleeper = subprocess.Popen(["ip", "netns", "exec", foreign, "sleep", "60"])
    try:
        # A half-built lab: namespaces alone, as after `kill -9` of an `up`.
        subprocess.run(["ip", "netns", "add", f"{name}-n1"], check=True, timeout=10)
        stray = subprocess.Popen(["ip", "netns", "exec", f"{name}-n1", "sleep", "60"])
        time.sleep(0.5)
        assert Lab.down(name)
        assert stray.wait(10) == -signal.SIGKILL
        assert sleeper.poll() is None and (hosts.NAMESPACES / foreign).exists()
    finally:
        sleeper.kill()
        sleeper.wait(10)
        with contextlib.suppress(LabError):
            hosts.remove([foreign])
    assert traces(name) == []
