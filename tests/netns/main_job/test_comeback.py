"""Customers whose way in was closed for a moment, and customers with a preshared key: over REST, with real clients."""

from __future__ import annotations

import sqlite3
import time

import pytest

from agent.schema import TOLD_AGAIN
from tests.lab.errors import NoHandshake
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.readings import fetch
from tests.netns.main_job.conftest import RESYNC_SECONDS, Account, MakeAccount
from tests.netns.main_job.picture import NODE, found, links, wanted

AT_ONCE = 5.0  # seconds; the client's own timer makes it wait for 15 after its peer has gone
GONE = 1.5  # of these, that some of it is over


def seconds_to_an_answer(lab: Lab, client: str, at_most: float) -> float:
    """From now on, of a customer who goes on trying. Raises AssertionError after `at_most`."""
    start = time.monotonic()
    while fetch(lab, client, "/ip", seconds=0.3) is None:
        assert time.monotonic() - start < at_most, f"no answer within {at_most:g} s"
    return time.monotonic() - start


def test_who_is_enabled_again_is_back_at_once(lab: Lab, make_account: MakeAccount) -> None:
    name = make_account()["name"]
    lab.connect("c1", name)
    for _ in range(2):
        seconds_to_an_answer(lab, "c1", AT_ONCE)
        lab.rest.put(f"account/{name}", status="disable")
        with pytest.raises(AssertionError, match="no answer"):
            seconds_to_an_answer(lab, "c1", GONE)
        lab.rest.put(f"account/{name}", status="enable")
        print(f"back after {seconds_to_an_answer(lab, 'c1', AT_ONCE):.2f} s")


def test_who_lost_his_link_is_back_with_it(lab: Lab, make_account: MakeAccount) -> None:
    """What the agent knew of him is as old as its last full reading."""
    lab.connect("c1", make_account()["name"])
    assert fetch(lab, "c1", "/ip") is not None
    time.sleep(RESYNC_SECONDS + 1)
    (link,) = links(lab)
    lab.exec(NODE, "ip", "link", "delete", link)
    wait_until(lambda: found(lab) == wanted(lab), "repaired", 15.0)
    print(f"back after {seconds_to_an_answer(lab, 'c1', AT_ONCE):.2f} s")


def test_only_who_has_the_preshared_key_connects_and_another_one_holds_at_once(
    lab: Lab, make_account: MakeAccount
) -> None:
    account = make_account(preshared_key=1)
    path = f"account/{account['name']}"
    text = str(lab.rest.get(f"{path}/config_text"))
    assert "\nPresharedKey = " in text
    lab.connect("c1", account["name"])
    assert fetch(lab, "c1", "/ip") is not None
    lab.rest.put(path, preshared_key=1)
    assert fetch(lab, "c1", "/ip", seconds=2.0) is None, "its session is over"
    for wrong in (text, text.partition("\nPresharedKey")[0]):
        with pytest.raises(NoHandshake):
            lab._client("c1").connect(wrong)
    lab.connect("c1", account["name"])
    assert fetch(lab, "c1", "/ip") is not None
    lab.rest.put(path, preshared_key="")
    assert "PresharedKey" not in lab.rest.get(f"{path}/config_text")
    lab.connect("c1", account["name"])
    assert fetch(lab, "c1", "/ip") is not None
    secret = text.partition("\nPresharedKey = ")[2].strip()
    logs = "".join(file.read_text(errors="replace") for file in lab.state.glob("*.log"))
    assert logs and secret not in logs


def test_a_preshared_key_that_others_change_is_mended(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(preshared_key=1)
    lab.connect("c1", account["name"])
    (link,) = links(lab)
    lab.exec(NODE, "wg", "set", link, "peer", account["public_key"], "preshared-key", "/dev/null")
    wait_until(lambda: _preshared(lab, account) == _in_text(lab, account), "mended", RESYNC_SECONDS + 10.0)
    lab.connect("c1", account["name"])
    assert fetch(lab, "c1", "/ip") is not None


def test_an_agent_that_is_upgraded_later_than_the_gateway_hears_of_preshared_keys(
    lab: Lab, make_account: MakeAccount
) -> None:
    """Peer and file are what an agent of before leaves, who dropped the field, and the upgrade of its file after it."""
    account, other = make_account(preshared_key=1), make_account()
    lab.connect("c1", other["name"])
    (link,) = links(lab)
    lab.stop_agent(NODE)
    with sqlite3.connect(lab.state / NODE / "agent.db") as db:
        db.execute("UPDATE accounts SET preshared_key = ''")
        db.execute(TOLD_AGAIN)  # as every upgrade of the file does
    db.close()
    lab.exec(NODE, "wg", "set", link, "peer", account["public_key"], "preshared-key", "/dev/null")
    before, handshake = found(lab), lab.handshake("c1")
    lab.start_agent(NODE)
    wait_until(lambda: lab.rest.get("system/status")["status"] == "OK", "status OK", 20.0)
    wait_until(lambda: _preshared(lab, account) == _in_text(lab, account), "it was told again", 20.0)
    lab.connect("c2", account["name"])
    assert fetch(lab, "c1", "/ip") is not None and lab.handshake("c1") == handshake
    assert found(lab) == before
    assert not found(lab).fell(before)


def _preshared(lab: Lab, account: Account) -> str:
    """As the node's kernel has it."""
    (link,) = links(lab)
    shown = lab.exec(NODE, "wg", "show", link, "preshared-keys").stdout
    return dict(line.split("\t") for line in shown.splitlines())[account["public_key"]]


def _in_text(lab: Lab, account: Account) -> str:
    text = str(lab.rest.get(f"account/{account['name']}/config_text"))
    return text.partition("\nPresharedKey = ")[2].strip()
