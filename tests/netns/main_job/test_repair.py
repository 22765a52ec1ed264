"""Restarts touch nothing; what somebody breaks is repaired; what is not ours is left alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from agent.kernel.wireguard.uapi import ANSWER_SECONDS, REST_SECONDS
from tests.lab.errors import NoHandshake
from tests.lab.hosts import NAMESPACES
from tests.lab.lab import Lab
from tests.lab.processes import inside, wait_until
from tests.lab.readings import Download, counters_at_rest, fetch, usage
from tests.lab.topology import UPLINK
from tests.netns.main_job.conftest import RESYNC_SECONDS, MakeAccount
from tests.netns.main_job.picture import NODE, found, links, wanted

REPAIR_SECONDS = RESYNC_SECONDS + 3.0
HUNG_SECONDS = 3 * ANSWER_SECONDS


def objects(lab: Lab) -> str:
    """Every rule, class, qdisc, filter, link and address of the node, counters left out."""
    commands = [["iptables-legacy-save"], ["ip", "-oneline", "address"], ["tc", "qdisc"]]
    for device in (*links(lab), UPLINK):
        commands += [["tc", what, "show", "dev", device] for what in ("class", "filter")]
    text = "\n".join(lab.exec(NODE, *command).stdout for command in commands)
    text = re.sub(r"direct_packets_stat \d+", "", text)
    return "\n".join(line for line in text.splitlines() if not line.startswith((":", "#")))


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_agent_restart_under_a_download_touches_no_peer_rule_or_class(
    lab: Lab, make_account: MakeAccount, how: str
) -> None:
    account = make_account(b_download=20, b_upload=20)["name"]
    for _ in range(5):
        make_account(b_download=10, b_upload=10)
    lab.connect("c1", account)
    text, picture, handshake = objects(lab), found(lab), lab.handshake("c1")
    with Download(lab, "c1", "15M") as running:
        time.sleep(1.0)
        (lab.stop_agent if how == "stop" else lab.kill_agent)(NODE)
        time.sleep(0.5)
        lab.start_agent(NODE)
        assert running.finished(30.0) == 15_000_000
    time.sleep(RESYNC_SECONDS + 0.5)
    assert objects(lab) == text
    after = found(lab)
    assert after == picture
    assert after.fell(picture) == {}
    assert lab.handshake("c1") == handshake
    counted = counters_at_rest(lab.rest, account)
    assert usage(lab.rest, account) == (counted.download_bytes, counted.upload_bytes)


def test_gateway_restart_is_not_noticed_by_the_node(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=20, b_upload=20)["name"]
    lab.connect("c1", account)
    before, picture = objects(lab), found(lab)
    with Download(lab, "c1", "8M") as running:
        lab.kill_gateway()
        time.sleep(1.0)
        lab.start_gateway()
        assert running.finished(30.0) == 8_000_000
    assert objects(lab) == before
    assert found(lab).fell(picture) == {}
    counted = counters_at_rest(lab.rest, account)
    assert usage(lab.rest, account) == (counted.download_bytes, counted.upload_bytes)


@pytest.mark.parametrize("broken", ["mangle flushed", "class deleted", "peer removed", "qdisc deleted", "all of it"])
def test_what_somebody_breaks_is_repaired_within_one_resync(lab: Lab, make_account: MakeAccount, broken: str) -> None:
    account = make_account(b_download=20, b_upload=20)
    make_account()
    lab.connect("c1", account["name"])
    with Download(lab, "c1", "2M") as running:
        assert running.finished(20.0) == 2_000_000
    used = usage(lab.rest, account["name"])
    right, before = wanted(lab), objects(lab)
    assert found(lab) == right
    for command in _damage(lab, broken, account):
        lab.exec(NODE, *command)
    assert found(lab) != right
    wait_until(lambda: found(lab) == right, f"{broken}: repaired", REPAIR_SECONDS)
    assert sorted(objects(lab).splitlines()) == sorted(before.splitlines())
    wait_until(lambda: fetch(lab, "c1", "/ip", seconds=2.0) is not None, "the client is back", 40.0)
    later = usage(lab.rest, account["name"])
    assert later[0] >= used[0] and later[1] >= used[1]


def _damage(lab: Lab, what: str, account: dict[str, str]) -> list[list[str]]:
    link = links(lab)[0]
    return {
        "mangle flushed": [["iptables-legacy", "-t", "mangle", "-F"]],
        "class deleted": [["tc", "class", "del", "dev", UPLINK, "classid", f"1:{account['mangle']}"]],
        "peer removed": [["wg", "set", link, "peer", account["public_key"], "remove"]],
        "qdisc deleted": [["tc", "qdisc", "del", "dev", UPLINK, "root"]],
        "all of it": [
            ["iptables-legacy", "-t", "mangle", "-F"],
            ["iptables-legacy", "-t", "nat", "-F"],
            ["iptables-legacy", "-F"],
            ["tc", "qdisc", "del", "dev", UPLINK, "root"],
            ["tc", "qdisc", "del", "dev", link, "root"],
            ["wg", "set", link, "peer", account["public_key"], "remove"],
        ],
    }[what]


def test_what_is_not_ours_is_left_as_it_is_byte_for_byte(lab: Lab, make_account: MakeAccount) -> None:
    lab.exec(NODE, "ip", "link", "add", "foreign0", "type", "veth", "peer", "name", "foreign1")
    try:
        for command in (
            "iptables-legacy -t mangle -N FOREIGN",
            "iptables-legacy -t mangle -A FOREIGN -s 192.0.2.7 -j MARK --set-mark 7",
            "iptables-legacy -t mangle -A FORWARD -s 192.0.2.7 -j FOREIGN",
            "iptables-legacy -t mangle -A PREROUTING -d 192.0.2.7 -m comment --comment mine -j ACCEPT",
            "iptables-legacy -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE",
            "iptables-legacy -A INPUT -p tcp --dport 22 -j ACCEPT",
            "tc qdisc add dev foreign0 root handle 1: htb default 10",
            "tc class add dev foreign0 parent 1: classid 1:100 htb rate 5mbit",
            "ip route add 192.0.2.128/25 via 198.51.100.1",
        ):
            lab.exec(NODE, *command.split())
        foreign = _foreign(lab)
        assert len(foreign.splitlines()) >= 9
        account = make_account(b_download=10, b_upload=10)
        lab.rest.put(f"account/{account['name']}", b_download="30")
        for chain in lab.exec(NODE, "iptables-legacy", "-t", "mangle", "-S").stdout.splitlines():
            if chain.startswith("-N WL_"):
                lab.exec(NODE, "iptables-legacy", "-t", "mangle", "-F", chain.split()[1])
        wait_until(lambda: found(lab) == wanted(lab), "repaired", REPAIR_SECONDS)
        lab.kill_agent(NODE)
        lab.start_agent(NODE)
        lab.rest.delete(f"account/{account['name']}")
        wait_until(lambda: found(lab) == wanted(lab), "deleted", REPAIR_SECONDS)
        assert _foreign(lab) == foreign
    finally:
        lab.exec(NODE, "ip", "link", "delete", "foreign0")
        lab.exec(NODE, "ip", "route", "delete", "192.0.2.128/25", check=False)
        for table in ("mangle", "nat", "filter"):
            rules = lab.exec(NODE, "iptables-legacy", "-t", table, "-S").stdout.splitlines()
            for rule in (rule for rule in rules if rule.startswith("-A") and "WL_" not in rule):
                lab.exec(NODE, "iptables-legacy", "-t", table, "-D", *rule.split()[1:])
        lab.exec(NODE, "iptables-legacy", "-t", "mangle", "-X", "FOREIGN")


def _foreign(lab: Lab) -> str:
    """Rules, qdiscs, classes and routes that the test made."""
    commands = [["iptables-legacy-save"], ["ip", "route"]]
    commands += [["tc", what, "show", "dev", "foreign0"] for what in ("qdisc", "class")]
    text = "\n".join(lab.exec(NODE, *command).stdout for command in commands)
    return "\n".join(
        line
        for line in text.splitlines()
        if not line.startswith(("#", ":WL_", "*", "COMMIT"))
        and "WL_" not in line
        and " wg" not in line
        and not line.startswith((":PREROUTING", ":INPUT", ":FORWARD", ":OUTPUT", ":POSTROUTING"))
    )


def tunnels(lab: Lab) -> dict[str, int]:
    """Processes of userspace WireGuard, by interface."""
    there = (running.pid for running in inside([NAMESPACES / lab.host(NODE).namespace]))
    words = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in there}
    found = {said[1]: pid for pid, said in words.items() if Path(said[0]).name == "wireguard-go"}
    if not found:
        pytest.skip("the kernel has WireGuard of its own here: no process to kill")
    return found


def test_a_killed_userspace_wireguard_comes_back(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=20, b_upload=20)
    lab.connect("c1", account["name"])
    for pid in tunnels(lab).values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: fetch(lab, "c1", "/ip", seconds=2.0) is not None, "the client is back", REPAIR_SECONDS + 40.0)
    assert found(lab) == wanted(lab)


def handshakes(lab: Lab, client: str, account: str) -> bool:
    try:
        lab.connect(client, account)
    except NoHandshake:
        return False
    return True


def test_a_wireguard_that_hangs_spoils_its_own_server_alone(lab: Lab, make_account: MakeAccount) -> None:
    one, two = make_account(), make_account()
    lab.connect("c1", one["name"])
    lab.connect("c2", two["name"])
    second = lab.rest.post("wireguard")
    pid = tunnels(lab)[second["interface_name"]]
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(RESYNC_SECONDS + 1.0)  # the pass that finds it
        began = time.monotonic()
        lab.rest.put(f"account/{one['name']}", status="disable")
        wait_until(lambda: fetch(lab, "c1", "/ip", seconds=1.0) is None, "cut off", HUNG_SECONDS)
        three = make_account()
        wait_until(lambda: handshakes(lab, "c1", three["name"]), "let in", HUNG_SECONDS)
        assert fetch(lab, "c2", "/ip") is not None
        (node,) = lab.rest.get("system/status")["nodes"]
        assert second["name"] in node["problem"] and time.monotonic() - began < 2 * HUNG_SECONDS
    finally:
        os.kill(pid, signal.SIGCONT)
        lab.rest.delete(f"wireguard/{second['name']}")
    wait_until(lambda: found(lab) == wanted(lab), "right again", REST_SECONDS + REPAIR_SECONDS)


def test_plan_tells_what_a_resync_would_change_and_clear_takes_all_of_it_away(
    lab: Lab, make_account: MakeAccount
) -> None:
    account = make_account(b_download=20, b_upload=20)
    lab.connect("c1", account["name"])
    with Download(lab, "c1", "2M") as running:
        assert running.finished(20.0) == 2_000_000
    used = usage(lab.rest, account["name"])
    right = found(lab)
    assert planned(lab) == (0, ["nothing to do: the kernel shows what was asked for"])
    beside = agent(lab, "clear")
    assert beside.returncode == 1 and "is running" in beside.stderr and found(lab) == right
    lab.stop_agent(NODE)
    cleared = agent(lab, "clear")
    assert cleared.returncode == 0, cleared.stderr
    assert links(lab) == [] and "WL_" not in objects(lab) and "htb" not in objects(lab)
    status, lines = planned(lab)
    assert status == 2 and any(line.startswith("add     peer") and account["name"] in line for line in lines)
    lab.start_agent(NODE)
    wait_until(lambda: found(lab) == right, "everything is back", REPAIR_SECONDS)
    assert usage(lab.rest, account["name"]) == used


def planned(lab: Lab) -> tuple[int, list[str]]:
    done = agent(lab, "plan")
    assert done.returncode in (0, 2), done.stderr
    return done.returncode, done.stdout.splitlines()


def agent(lab: Lab, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(lab.agent_command(NODE, command), capture_output=True, text=True, timeout=60, check=False)
