"""What dies in the middle of a thousand creates loses no acknowledged one and makes none twice."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fleet import crowd
from tests.fleet.run import cleared
from tests.lab.errors import LabError
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.rest import Answer

CREATES = 1000
KERNEL_SECONDS = 10.0
DATABASE_AWAY_SECONDS = 5.0
UNAVAILABLE = "The database is not available, try again"


@pytest.fixture
def node_of(lab: Lab) -> Iterator[dict[str, str]]:
    """A server on every node: its name and its node's."""
    cleared(lab)
    yield {str(lab.rest.post("wireguard", node=node.name)["name"]): node.name for node in lab.plan.nodes}
    lab.heal()
    cleared(lab)


def kill_a_gateway(lab: Lab) -> None:
    lab.kill_gateway("g1")


def kill_the_database(lab: Lab) -> None:
    lab.kill_database()
    time.sleep(DATABASE_AWAY_SECONDS)
    lab.start_database()


@pytest.mark.timeout(280)
@pytest.mark.parametrize("kill", [kill_a_gateway, kill_the_database])
def test_every_acknowledged_create_is_in_the_kernel_and_none_is_twice(
    lab: Lab, node_of: dict[str, str], kill: Callable[[Lab], None]
) -> None:
    made = crowd.create(lab, list(node_of), CREATES, lambda: kill(lab))
    seconds = crowd.are_in_the_kernel(lab, made, node_of, KERNEL_SECONDS)
    print(f"{len(made)} of {CREATES} acknowledged, all in the kernel {seconds:.1f} s later")
    assert CREATES // 3 <= len(made) < CREATES, "it died in the middle"
    assert crowd.held_twice(made) == []
    lab.start_gateway("g1")
    listed = {account["name"]: account for account in lab.rest_of("g2").get("account")}
    assert {name: listed.get(name) for name in made} == made
    assert crowd.held_twice(listed) == []


def test_a_cut_node_s_changes_wait_and_others_do_not(lab: Lab, node_of: dict[str, str]) -> None:
    servers = {node: server for server, node in node_of.items()}
    lab.rest.post("account", name="far", wg_name=servers["n2"])
    before = median_edit(lab, "far")
    lab.cut("n1")
    first = lab.rest.call("POST", "account", {"name": "w0", "wg_name": servers["n1"]})
    assert (first.error, first.pending) == ("", "n1")
    wait_until(lambda: is_away(lab, "n1"), "the gateway knows that n1 is away", 10.0)
    began = time.monotonic()
    waiting = [lab.rest.call("POST", "account", {"name": f"w{i}", "wg_name": servers["n1"]}) for i in range(1, 6)]
    at_once = (time.monotonic() - began) / len(waiting)
    assert [(answer.error, answer.pending) for answer in waiting] == [("", "n1")] * 5
    assert at_once < 0.3
    during = median_edit(lab, "far")
    made = {answer.msg["name"]: answer.msg for answer in (first, *waiting)}
    lab.heal("n1")
    seconds = crowd.are_in_the_kernel(lab, made, node_of, 5.0)
    print(f"p50 {before * 1e3:.1f} -> {during * 1e3:.1f} ms; pending in {at_once:.3f} s; in the kernel {seconds:.1f} s")
    assert during < 1.3 * before + 0.005, "5 ms: what else this machine does"


def test_a_gateway_that_is_cut_from_the_database_says_so_soon_and_holds_up_nobody(
    lab: Lab, node_of: dict[str, str]
) -> None:
    (server, *_) = node_of
    end = threading.Event()

    def sell(thread: int) -> None:
        for number in itertools.takewhile(lambda _: not end.is_set(), itertools.count()):
            lab.rest_of("g1").call("POST", "account", {"name": f"x{thread}-{number}", "wg_name": server})

    with ThreadPoolExecutor(8) as threads:
        sellers = [threads.submit(sell, thread) for thread in range(6)]
        time.sleep(1.0)
        lab.cut("g1")  # most likely it holds the row of the node at this moment
        end.set()
        other = threads.submit(lab.rest_of("g2").call, "POST", "account", {"name": "o", "wg_name": server})
        first, seconds = timed(lambda: lab.rest_of("g1").call("GET", "account"))
        assert (first.error, seconds < 6.5) == (UNAVAILABLE, True), seconds
        later = [timed(lambda: lab.rest_of("g1").call("GET", "account")) for _ in range(5)]
        assert [answer.error for answer, _ in later] == [UNAVAILABLE] * 5
        assert max(took for _, took in later) < 0.5
        assert other.result().error == ""
        for seller in sellers:
            seller.result()
    began = time.monotonic()
    lab.heal("g1")
    wait_until(lambda: not lab.rest_of("g1").call("GET", "account").error, "g1 finds the database again", 6.0)
    print(
        f"refused in {seconds:.1f} s, then in {max(took for _, took in later):.3f} s; "
        f"back {time.monotonic() - began:.1f} s after healing"
    )


def timed(call: Callable[[], Answer]) -> tuple[Answer, float]:
    began = time.monotonic()
    return call(), time.monotonic() - began


def median_edit(lab: Lab, account: str) -> float:
    """Seconds that an edit takes."""
    taken = []
    for rate in range(40):
        began = time.monotonic()
        assert not lab.rest.call("PUT", f"account/{account}", {"b_download": 10 + rate}).pending
        taken.append(time.monotonic() - began)
    return sorted(taken)[len(taken) // 2]


def is_away(lab: Lab, node: str) -> bool:
    try:
        found = lab.rest.get("system/status")["nodes"]
    except LabError:
        return False
    return any(one["name"] == node and one["status"] != "OK" for one in found)
