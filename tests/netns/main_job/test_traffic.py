"""An account carries real traffic: shaped, counted, cut off, let in again."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.hosts import run
from tests.lab.lab import Lab
from tests.lab.readings import (
    Direction,
    Download,
    counters_at_rest,
    fetch,
    is_shaped,
    mangle_counters,
    received,
    shaped_rate,
    usage,
)
from tests.netns.main_job.conftest import MakeAccount

DIRECTIONS: tuple[Direction, ...] = ("download", "upload")
NODE_TO_INTERNET = "to-n1"  # the internet's end of the node's uplink


def until_reachable(lab: Lab, client: str, seconds: float = 40.0) -> bool:
    """A client whose peer was taken away notices after 15 s of silence, then tries every 5 s."""
    end = time.monotonic() + seconds
    while fetch(lab, client, "/ip", seconds=2.0) is None:
        if time.monotonic() > end:
            return False
    return True


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_both_directions_are_held_to_what_was_sold_and_follow_a_change(
    lab: Lab, make_account: MakeAccount, direction: Direction
) -> None:
    account = make_account(b_download=20, b_upload=10)
    lab.connect("c1", account["name"])
    sold = 20 if direction == "download" else 10
    rate = shaped_rate(lab, "c1", direction, sold)
    assert is_shaped(rate, sold), rate
    handshake = lab.handshake("c1")
    lab.rest.put(f"account/{account['name']}", b_download=35, b_upload=45)
    sold = 35 if direction == "download" else 45
    rate = shaped_rate(lab, "c1", direction, sold)
    assert is_shaped(rate, sold), rate
    assert lab.handshake("c1") == handshake


def test_a_small_rate_holds_and_does_not_stall(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=1, b_upload=1)
    lab.connect("c1", account["name"])
    for direction in DIRECTIONS:
        rate = shaped_rate(lab, "c1", direction, 1, seconds=8)
        assert is_shaped(rate, 1), (direction, rate)


def test_accounts_do_not_slow_one_another(lab: Lab, make_account: MakeAccount) -> None:
    for client, sold in (("c1", 10), ("c2", 20)):
        lab.connect(client, make_account(b_download=sold, b_upload=sold)["name"])
    with Download(lab, "c2", "1G"):
        rate = shaped_rate(lab, "c1", "download", 10)
    assert is_shaped(rate, 10), rate


def test_an_unlimited_account_has_no_class_and_is_counted(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=0, b_upload=0)
    lab.connect("c1", account["name"])
    with Download(lab, "c1", "20M") as running:
        assert running.finished(30.0) == 20_000_000
    assert usage(lab.rest, account["name"])[0] > 20_000_000
    assert "class htb" not in lab.rest.get(f"account/{account['name']}/traffic_control")


def test_statistics_equal_the_mangle_counters_to_the_byte(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=100, b_upload=100)["name"]
    lab.connect("c1", account)
    assert mangle_counters(lab.rest, account).upload_packets > 0  # the first datagram was counted already
    with Download(lab, "c1", "10M") as running:
        assert running.finished(30.0) == 10_000_000
    upload = ["curl", "-s", "-T", "-", "http://203.0.113.1/x"]
    lab.exec("c1", *upload, stdin="x" * 3_000_000)
    counted = counters_at_rest(lab.rest, account)
    assert usage(lab.rest, account) == (counted.download_bytes, counted.upload_bytes)
    assert 10_000_000 < counted.download_bytes < 11_500_000
    assert 3_000_000 < counted.upload_bytes < 3_900_000


def test_a_disabled_account_passes_no_packet_once_the_call_has_answered(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=5, b_upload=2)["name"]  # slow: the queues are full when the call comes
    lab.connect("c1", account)
    flood = ["iperf3", "-c", "203.0.113.1", "-p", "5203", "-u", "-b", "20M", "-t", "20", "--bidir"]
    with subprocess.Popen(lab.command("c1", *flood), stdout=subprocess.DEVNULL) as running:
        time.sleep(3.0)
        assert passed(lab) > (0, 0)
        lab.rest.put(f"account/{account}", status="disable")
        before = passed(lab)
        time.sleep(1.5)
        assert passed(lab) == before
        running.kill()
    assert fetch(lab, "c1", "/ip", seconds=2.0) is None
    lab.rest.put(f"account/{account}", status="enable")
    assert until_reachable(lab, "c1")


def passed(lab: Lab) -> tuple[int, int]:
    """Bytes that came to the client through the tunnel, and packets that the node sent to the internet for it.

    UDP, as the flood is: where the kernel has WireGuard, it tells senders by ICMP that the peer is gone; and in a fleet
    the agent answers gateways by TCP.
    """
    rule = ["PREROUTING", "-i", NODE_TO_INTERNET, "-p", "udp", "-m", "comment", "--comment", "passed"]
    if lab.exec("internet", "iptables-legacy", "-t", "mangle", "-C", *rule, check=False).returncode:
        lab.exec("internet", "iptables-legacy", "-t", "mangle", "-A", *rule)
    saved = lab.exec("internet", "iptables-legacy-save", "-t", "mangle", "-c").stdout
    counted = next(line for line in saved.splitlines() if "passed" in line)
    return received(lab, "c1"), int(counted[1:].partition(":")[0])


def test_a_deleted_account_passes_nothing_and_is_gone(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account()["name"]
    lab.connect("c1", account)
    assert fetch(lab, "c1", "/ip") is not None
    lab.rest.delete(f"account/{account}")
    assert fetch(lab, "c1", "/ip", seconds=2.0) is None
    assert lab.rest.call("GET", f"account/{account}").error == "Account not found"


def test_accounts_of_a_server_meet_only_where_internal_traffic_is_on(
    lab: Lab, server: str, make_account: MakeAccount
) -> None:
    first, second = make_account(), make_account()
    lab.connect("c1", first["name"])
    lab.connect("c2", second["name"])
    listen = ["iperf3", "--server", "--one-off", "--port", "5300"]
    reach = ["curl", "-s", "--connect-timeout", "2", f"telnet://{second['allowed_IPs']}:5300"]
    with subprocess.Popen(lab.command("c2", *listen), stdout=subprocess.DEVNULL) as listener:
        try:
            assert lab.exec("c1", *reach, "--max-time", "3", check=False).returncode == 28  # no answer at all
            lab.rest.put(f"wireguard/{server}", internal_traffic="1")
            opened = lab.exec("c1", *reach, "--max-time", "3", "-w", "%{time_connect}", check=False).stdout
            assert float(opened.split()[-1]) > 0
            lab.rest.put(f"wireguard/{server}", internal_traffic="0")
            assert lab.exec("c1", *reach, "--max-time", "3", check=False).returncode == 28
            assert fetch(lab, "c1", "/ip") is not None  # the internet stays open
        finally:
            listener.kill()


def test_a_new_account_at_a_used_address_starts_from_zero(lab: Lab, make_account: MakeAccount) -> None:
    first = make_account(b_download=50, b_upload=50)
    lab.connect("c1", first["name"])
    with Download(lab, "c1", "1M") as running:
        assert running.finished(20.0) == 1_000_000
    lab.disconnect("c1")
    lab.rest.delete(f"account/{first['name']}")
    second = make_account(b_download=50, b_upload=50, allowed_IPs=first["allowed_IPs"])
    assert (second["allowed_IPs"], second["mangle"]) == (first["allowed_IPs"], first["mangle"])
    counted = mangle_counters(lab.rest, second["name"])
    assert (counted.download_bytes, counted.upload_bytes) == (0, 0)
    assert usage(lab.rest, second["name"]) == (0, 0)
    lab.connect("c1", second["name"])
    with Download(lab, "c1", "1M") as running:
        assert running.finished(20.0) == 1_000_000
    counted = counters_at_rest(lab.rest, second["name"])
    assert usage(lab.rest, second["name"]) == (counted.download_bytes, counted.upload_bytes)
    assert 1_000_000 < counted.download_bytes < 1_200_000


def test_the_heir_of_an_address_neither_gets_nor_pays_for_an_old_stream(lab: Lab, make_account: MakeAccount) -> None:
    first = make_account(b_download=4, b_upload=4)
    lab.connect("c1", first["name"])
    with Download(lab, "c1", "1G"):
        time.sleep(1.0)
        lab.disconnect("c1")  # without a word to the sender
        lab.rest.delete(f"account/{first['name']}")
        second = make_account(allowed_IPs=first["allowed_IPs"])
        lab.connect("c2", second["name"])
        before = received(lab, "c2"), mangle_counters(lab.rest, second["name"]).download_bytes
        time.sleep(3.0)
        assert (received(lab, "c2"), mangle_counters(lab.rest, second["name"]).download_bytes) == before


def test_the_configuration_is_one_for_wg_quick_and_its_qr_code_says_the_same(
    lab: Lab, make_account: MakeAccount, tmp_path: Path
) -> None:
    account = make_account()["name"]
    text = lab.rest.get(f"account/{account}/config_text")
    file = tmp_path / "client.conf"
    file.write_text(text)
    file.chmod(0o600)
    stripped = run(["wg-quick", "strip", str(file)]).stdout
    assert "PrivateKey" in stripped and "Endpoint" in stripped and "Address" not in stripped
    picture = tmp_path / "client.png"
    picture.write_bytes(base64.b64decode(lab.rest.get(f"account/{account}/config_qr"), validate=True))
    decoded = run(["zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", str(picture)]).stdout
    assert decoded.strip() == text.strip()
