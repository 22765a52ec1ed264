"""Many changes at once, and changes while a process dies: nothing that was acknowledged is lost."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.errors import ApiError, LabError
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.readings import fetch
from tests.netns.main_job.conftest import MakeAccount
from tests.netns.main_job.picture import NODE, found, links, wanted

SEED = 20241123
_number = itertools.count()


def test_a_hundred_creates_at_once_give_a_hundred_accounts_and_peers(lab: Lab, server: str) -> None:
    with ThreadPoolExecutor(100) as callers:
        answers = list(callers.map(lambda _: lab.rest.call("POST", "account", {"wg_name": server}), range(100)))
    assert [answer.error for answer in answers] == [""] * 100
    accounts = [answer.msg for answer in answers]
    for field in ("name", "username", "allowed_IPs", "mangle", "public_key"):
        assert len({account[field] for account in accounts}) == 100, field
    listed = {account["name"]: account for account in lab.rest.get("account")}
    assert all(listed[account["name"]] == account for account in accounts)
    wait_until(lambda: found(lab) == wanted(lab), "all hundred in the kernel", 10.0)
    peers = lab.exec(NODE, "wg", "show", links(lab)[0], "peers").stdout.split()
    assert sorted(peers) == sorted(account["public_key"] for account in accounts)
    # Switched off and on, and deleted, all at once too.
    for status in ("disable", "enable"):
        with ThreadPoolExecutor(100) as callers:
            calls = [(f"account/{account['name']}", {"status": status}) for account in accounts]
            changed = callers.map(lambda call: lab.rest.call("PUT", *call), calls)
            assert [answer.error for answer in changed] == [""] * 100
        wait_until(lambda: found(lab) == wanted(lab), status, 10.0)
    with ThreadPoolExecutor(100) as callers:
        deleted = callers.map(lambda account: lab.rest.call("DELETE", f"account/{account['name']}"), accounts)
        assert [answer.error for answer in deleted] == [""] * 100
    wait_until(lambda: found(lab) == wanted(lab), "all deleted", 10.0)
    assert found(lab).peers == frozenset()


def test_a_change_while_the_agent_is_away_is_pending_and_then_done(lab: Lab, make_account: MakeAccount) -> None:
    kept = make_account(b_download=10)
    lab.connect("c1", kept["name"])
    lab.stop_agent(NODE)
    began = time.monotonic()
    answer = lab.rest.call("PUT", f"account/{kept['name']}", {"b_download": "30"})
    assert (answer.error, answer.pending) == ("", NODE)
    assert time.monotonic() - began < 4.0
    assert lab.rest.get(f"account/{kept['name']}")["b_download"] == "30"
    created = make_account()
    assert NODE in lab.rest.get("system/status")["status"]
    for live in ("dump", "firewall_mangle_rules", "traffic_control"):
        with pytest.raises(ApiError, match=NODE):
            lab.rest.get(f"account/{created['name']}/{live}")
    assert fetch(lab, "c1", "/ip") is not None
    lab.start_agent(NODE)
    wait_until(lambda: found(lab) == wanted(lab), "caught up", 15.0)
    wait_until(lambda: lab.rest.get("system/status")["status"] == "OK", "status OK", 15.0)
    answer = lab.rest.call("PUT", f"account/{kept['name']}", {"b_download": "20"})
    assert (answer.error, answer.pending) == ("", "")
    assert found(lab) == wanted(lab)


def test_agent_that_lost_its_state_file_gets_all_of_it_again(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=10)
    lab.connect("c1", account["name"])
    lab.kill_agent(NODE)
    for file in (lab.state / NODE).glob("agent.db*"):
        file.write_bytes(b"not a database" * 400)
    lab.start_agent(NODE)
    assert fetch(lab, "c1", "/ip") is not None
    wait_until(lambda: lab.rest.get("system/status")["status"] == "OK", "a snapshot was sent", 20.0)
    wait_until(lambda: found(lab) == wanted(lab), "as it was", 10.0)
    assert fetch(lab, "c1", "/ip") is not None


class Churn:
    """Creates, edits and deletes accounts until told to stop; remembers what was acknowledged."""

    def __init__(self, lab: Lab, server: str, chance: random.Random) -> None:
        self._lab, self._server, self._chance = lab, server, chance
        self.acknowledged: dict[str, dict[str, str]] = {}
        self.unsure: set[str] = set()  # the gateway died before it answered: either outcome is right
        self.refused: list[str] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Churn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join(60.0)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._enough.is_set():
            doomed = [name for name in self.acknowledged if self._chance.random() < 0.3]
            name = doomed[0] if doomed and len(self.acknowledged) > 5 else f"churn-{next(_number)}"
            try:
                self._change(name)
            except ApiError as refused:
                self.refused.append(str(refused))
            except LabError:
                self.unsure.add(name)
                self.acknowledged.pop(name, None)
                time.sleep(0.1)

    def _change(self, name: str) -> None:
        if name not in self.acknowledged:
            rate = str(self._chance.randrange(1, 50))
            made = self._lab.rest.post("account", wg_name=self._server, name=name, b_download=rate, b_upload=rate)
            self.acknowledged[name] = made
        elif self._chance.random() < 0.5:
            self._lab.rest.delete(f"account/{name}")
            del self.acknowledged[name]
        else:
            status = self._chance.choice(("enable", "disable"))
            self.acknowledged[name] = self._lab.rest.put(f"account/{name}", status=status)


def agree(lab: Lab, churn: Churn) -> None:
    """API and kernel hold every acknowledged change, and each other's."""
    assert churn.refused == []
    wait_until(lambda: lab.rest.get("system/status")["status"] == "OK", "gateway and agent in step", 20.0)
    listed = {account["name"]: account for account in lab.rest.get("account") if account["name"] not in churn.unsure}
    assert listed == churn.acknowledged
    assert found(lab) == wanted(lab)


@pytest.mark.parametrize("victim", ["agent", "gateway"])
@pytest.mark.timeout(180)
def test_kill_9_at_any_moment_loses_no_acknowledged_change(lab: Lab, server: str, victim: str) -> None:
    chance = random.Random(SEED)
    kill: Callable[[], None] = (lambda: lab.kill_agent(NODE)) if victim == "agent" else lab.kill_gateway
    start: Callable[[], None] = (lambda: lab.start_agent(NODE)) if victim == "agent" else lab.start_gateway
    with Churn(lab, server, chance) as churn:
        for _ in range(8):
            time.sleep(chance.uniform(0.2, 1.2))
            kill()
            time.sleep(chance.uniform(0.0, 0.3))
            start()
        time.sleep(0.5)
    assert len(churn.acknowledged) > 3
    agree(lab, churn)
