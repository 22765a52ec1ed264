"""The operator's rules for what accounts send and get, from the call to the packet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.errors import LabError
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.readings import Download, fetch
from tests.lab.topology import INTERNET_ADDRESS
from tests.netns.main_job.conftest import RESYNC_SECONDS, MakeAccount
from tests.netns.main_job.picture import NODE

CALL = "firewall/rules/filter"
WEB_PORT = "80"
TABLE = ("table", "inet", "wirelane_filter")
REPAIR_SECONDS = 2 * RESYNC_SECONDS + 3.0


def rule(name: str, action: str = "DROP", **others: str) -> dict[str, str]:
    everywhere = {"d_ip": "0.0.0.0/0", "s_ip": "0.0.0.0/0", "chain": "FORWARD"}
    return {
        **everywhere,
        "name": name,
        "action": action,
        "d_port": WEB_PORT,
        "s_port": "0",
        "protocol": "TCP",
        **others,
    }


@pytest.fixture
def clean(lab: Lab, server: str) -> Iterator[None]:
    """No rule is left, whatever happens."""
    yield
    for one in lab.rest.get(CALL):
        lab.rest.delete(f"{CALL}/{one['name']}")


def passes(lab: Lab, host: str = "c1") -> bool:
    return fetch(lab, host, "/ip", seconds=2.0) is not None


def has_table(lab: Lab) -> bool:
    return lab.exec(NODE, "nft", "list", *TABLE, check=False).returncode == 0


def test_a_rule_holds_when_the_call_answers_and_no_longer_than_it_is_there(
    lab: Lab, clean: None, make_account: MakeAccount
) -> None:
    one, two = make_account(b_download=20), make_account()
    lab.connect("c1", one["name"])
    lab.connect("c2", two["name"])
    assert passes(lab) and passes(lab, "c2") and not has_table(lab)
    with Download(lab, "c1", "100M") as running:
        lab.rest.post(f"{CALL}/end", **rule("web", s_ip=f"{one['allowed_IPs']}/32"))
        assert not passes(lab) and passes(lab, "c2"), "also who was in the middle of it is cut off"
        with pytest.raises(LabError):
            running.finished(5.0)
    lab.rest.post(f"{CALL}/top", **rule("but", "ACCEPT", d_ip=f"{INTERNET_ADDRESS}/32"))
    assert passes(lab), "the first that fits decides"
    lab.rest.delete(f"{CALL}/but")
    assert not passes(lab)
    lab.rest.delete(f"{CALL}/web")
    assert passes(lab) and not has_table(lab)


def test_it_is_mended_and_outlives_the_agent(lab: Lab, clean: None, make_account: MakeAccount) -> None:
    lab.connect("c1", make_account()["name"])
    assert passes(lab)
    lab.rest.post(f"{CALL}/end", **rule("web"))
    listed = lab.exec(NODE, "nft", "list", *TABLE).stdout
    lab.kill_agent(NODE)
    assert not passes(lab)
    lab.start_agent(NODE)
    assert not passes(lab) and lab.exec(NODE, "nft", "list", *TABLE).stdout == listed
    for damage in (("flush", *TABLE), ("delete", *TABLE)):
        lab.exec(NODE, "nft", *damage)
        wait_until(
            lambda: lab.exec(NODE, "nft", "list", *TABLE, check=False).stdout == listed, "mended", REPAIR_SECONDS
        )
    assert not passes(lab)


def test_a_server_that_is_made_later_has_it_from_its_first_packet(
    lab: Lab, clean: None, make_account: MakeAccount
) -> None:
    lab.rest.post(f"{CALL}/end", **rule("web"))
    later = lab.rest.post("wireguard")
    try:
        account = lab.rest.post("account", wg_name=later["name"])
        lab.connect("c1", account["name"])
        assert not passes(lab)
        lab.rest.delete(f"{CALL}/web")
        assert passes(lab)
    finally:
        lab.disconnect("c1")
        for name in lab.rest.get(f"wireguard/{later['name']}/peers"):
            lab.rest.delete(f"account/{name}")
        lab.rest.delete(f"wireguard/{later['name']}")
