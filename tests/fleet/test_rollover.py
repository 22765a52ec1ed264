"""The authority of a fleet is exchanged, and with it every certificate, while customers load and gateways sell."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509

from agent.identity import load
from tests.fleet.run import cleared
from tests.lab.errors import LabError
from tests.lab.lab import Lab
from tests.lab.readings import Download, received
from tests.lab.rest import Answer
from tests.lab.services import agent_folder

STEP_SECONDS = 90.0  # gateways and nodes look three times a minute
STALL_SECONDS = 3.0


@pytest.fixture
def servers(lab: Lab) -> Iterator[dict[str, str]]:
    """One on every node, by the node's name."""
    cleared(lab)
    yield {node.name: str(lab.rest.post("wireguard", node=node.name)["name"]) for node in lab.plan.nodes}
    lab.disconnect("c1")
    cleared(lab)


def shown(lab: Lab) -> dict[str, int]:
    """By node: the serial number of its certificate."""
    found = {}
    for node in lab.plan.nodes:
        identity = load(agent_folder(node, lab.state) / "identity")
        assert identity is not None
        certificate = x509.load_pem_x509_certificate(identity.certificate)
        found[node.name] = certificate.serial_number
    return found


def patiently(lab: Lab, *words: str) -> str:
    """The command, again while it says that somebody is not that far."""
    give_up = time.monotonic() + STEP_SECONDS
    while True:
        try:
            return lab.gateway_cli("authority", *words)
        except LabError:
            if time.monotonic() > give_up:
                raise
            time.sleep(1.0)


@pytest.mark.timeout(400)
def test_an_authority_is_exchanged_under_a_download_and_a_storm_of_creates(lab: Lab, servers: dict[str, str]) -> None:
    end, answers, stalls = threading.Event(), list[Answer](), list[float]()
    lab.rest.post("account", name="loading", wg_name=servers["n1"], b_download=20)
    lab.connect("c1", "loading")

    def sell(gateway: str, thread: int) -> None:
        rest, wanted = lab.rest_of(gateway), itertools.cycle(servers.values())
        for number in itertools.takewhile(lambda _: not end.is_set(), itertools.count()):
            name = f"{gateway}-{thread}-{number}"
            answers.append(rest.call("POST", "account", {"name": name, "wg_name": next(wanted)}))
            answers.append(rest.call("DELETE", f"account/{name}"))
            time.sleep(0.05)

    def watch() -> None:
        came, since = received(lab, "c1"), time.monotonic()
        while not end.wait(0.5):
            if (now := received(lab, "c1")) > came:
                came, since = now, time.monotonic()
            stalls.append(time.monotonic() - since)

    before = shown(lab)
    (old,) = {line.split()[0] for line in lab.gateway_cli("authority", "list").splitlines() if "signs" in line}
    with Download(lab, "c1", "4G"), ThreadPoolExecutor(8) as threads:
        working = [threads.submit(sell, gateway, thread) for gateway in ("g1", "g2") for thread in range(3)]
        working.append(threads.submit(watch))
        try:
            time.sleep(2.0)
            pin = lab.gateway_cli("authority", "new").split()[0]
            patiently(lab, "use", pin)
            patiently(lab, "drop", old)
            time.sleep(5.0)
        finally:
            end.set()
        for one in working:
            one.result()
    after = shown(lab)
    assert all(after[node] != before[node] for node in before), "every node has another certificate"
    assert len(answers) > 500 and {answer.error for answer in answers} == {""}
    pending = [answer.pending for answer in answers if answer.pending]
    print(f"{len(answers)} changes, {len(pending)} pending, longest silence of the download {max(stalls):.1f} s")
    assert pending == [] and max(stalls) < STALL_SECONDS
    wait = [lab.rest.call("POST", "account", {"name": f"later-{node}", "wg_name": servers[node]}) for node in servers]
    assert [(answer.error, answer.pending) for answer in wait] == [("", "")] * len(servers)
