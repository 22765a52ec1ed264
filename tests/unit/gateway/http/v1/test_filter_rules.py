"""/api/v1/firewall/rules/filter: the calls, their errors, and what the nodes are told."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.filter_rules import HOSTS_OWN, MOST, NO_RULE
from tests.fakes.product import NODE
from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio
CALL = "/firewall/rules/filter"
MAIL = {
    **{"name": "mail", "action": "DROP", "chain": "FORWARD", "protocol": "TCP"},
    **{"d_ip": "0.0.0.0/0", "s_ip": "0.0.0.0/0", "d_port": "25", "s_port": "0"},
}
PRIVATE = MAIL | {"name": "private", "d_ip": "10.0.0.0/8", "d_port": "0", "protocol": "ANY"}


def told(api: Api) -> dict[str, list[str]]:
    """By the names of the servers those of the rules, as the node has them."""
    return {name: [one[0] for one in server.filter] for name, server in api.product.agents[NODE].servers.items()}


async def test_rules_come_first_or_last_and_every_server_has_them(api: Api) -> None:
    assert await api.msg("GET", CALL) == []
    assert await api.msg("POST", CALL + "/end", **MAIL) == MAIL
    assert await api.msg("POST", CALL + "/end", **PRIVATE) == PRIVATE
    first = MAIL | {"name": "top", "action": "ACCEPT", "s_ip": "10.0.0.7/32"}
    assert await api.msg("POST", CALL + "/top", **first) == first
    assert await api.msg("GET", CALL) == [first, MAIL, PRIVATE]
    assert told(api) == {"Default_1": ["top", "mail", "private"]}
    await api.msg("POST", "/wireguard", name="west", address="10.7.0.1/24")
    assert told(api) == {name: ["top", "mail", "private"] for name in ("Default_1", "west")}
    rules = api.product.agents[NODE].servers["west"].filter
    assert rules[1] == ("mail", False, "0.0.0.0/0", "0.0.0.0/0", "tcp", 0, 25)
    for name in ("mail", "top"):
        assert await api.msg("DELETE", f"{CALL}/{name}") == "success"
    assert await api.msg("GET", CALL) == [PRIVATE]
    await api.msg("DELETE", CALL + "/private")
    assert told(api) == {"Default_1": [], "west": []}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"d_port": "", "s_port": "", "protocol": ""}, {"d_port": "0", "protocol": "ANY"}),
        ({"action": "accept", "chain": "forward", "protocol": "udp"}, {"action": "ACCEPT", "protocol": "UDP"}),
        ({"d_ip": "192.0.2.77/24"}, {"d_ip": "192.0.2.0/24"}),
        ({"d_ip": "2001:DB8::/32", "s_ip": "::/0"}, {"d_ip": "2001:db8::/32", "s_ip": "::/0"}),
        ({"protocol": "ICMP", "d_port": "0"}, {"protocol": "ICMP", "d_port": "0"}),
        ({"protocol": "ANY", "s_port": "65535"}, {"protocol": "ANY", "s_port": "65535"}),
    ],
)
async def test_what_is_understood(api: Api, changes: dict[str, str], told: dict[str, str]) -> None:
    assert await api.msg("POST", CALL + "/end", **MAIL | changes) == MAIL | told
    assert await api.msg("GET", CALL) == [MAIL | told]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "a b"}, "Wrong rule name. Must be letters and numbers only"),
        ({"name": ""}, "Wrong rule name. Must be letters and numbers only"),
        ({"name": "a" * 65}, "Wrong rule name. Must be letters and numbers only"),
        ({"name": "ä"}, "Wrong rule name. Must be letters and numbers only"),
        ({}, "A rule with the same name already exists"),
        ({"chain": "WHATEVER"}, "Not correct Chain"),
        ({"chain": ""}, "Not correct Chain"),
        ({"chain": "INPUT"}, HOSTS_OWN),
        ({"chain": "OUTPUT"}, HOSTS_OWN),
        ({"d_ip": "192.0.2.1"}, "Destination IP must be in CIDR format"),
        ({"d_ip": ""}, "Destination IP must be in CIDR format"),
        ({"d_ip": "fe80::%eth0/64"}, "Destination IP must be in CIDR format"),
        ({"s_ip": "10.0.0.0/33"}, "Source IP must be in CIDR format"),
        ({"s_ip": "::/0"}, "Source IP must be of the same family as Destination IP"),
        ({"action": "REJECT"}, "Action must be ACCEPT or DROP"),
        ({"protocol": "SCTP"}, "Protocol must be TCP, UDP, ICMP or ANY"),
        ({"d_port": "65536"}, "Destination port must be within 0-65535"),
        ({"s_port": "-1"}, "Source port must be within 0-65535"),
        ({"protocol": "ICMP"}, "ICMP has no ports: d_port and s_port must be 0"),
    ],
)
async def test_what_cannot_be_is_refused(api: Api, changes: dict[str, str], error: str) -> None:
    await api.msg("POST", CALL + "/end", **MAIL)
    for place in ("top", "end"):
        assert await api.error("POST", f"{CALL}/{place}", **MAIL | changes) == error
    assert await api.msg("GET", CALL) == [MAIL]


async def test_what_is_not_there_is_said(api: Api) -> None:
    await api.msg("POST", CALL + "/end", **MAIL)
    for name in ("nobody", "MAIL", "a%20b", "top"):
        assert await api.error("DELETE", f"{CALL}/{name}") == NO_RULE
    assert await api.msg("POST", CALL + "/top", **PRIVATE | {"name": "end"})
    assert await api.msg("DELETE", CALL + "/end") == "success"
    for place in ("middle", "END", "mail"):
        assert await api.error("POST", f"{CALL}/{place}", **PRIVATE) == "A rule is added at top or end"
    assert await api.msg("GET", CALL) == [MAIL]


async def test_there_is_a_bound(api: Api) -> None:
    for number in range(MOST):
        await api.msg("POST", CALL + "/end", **MAIL | {"name": f"r{number}"})
    assert await api.error("POST", CALL + "/top", **MAIL) == f"There are {MOST} rules already"


async def test_nodes_that_are_behind_are_named(api: Api) -> None:
    async def answer(method: str, path: str, **form: str) -> Any:
        return await api.http.request(method, f"/api/v1{path}", data=form)

    assert "X-Wirelane-Node" not in (await answer("POST", CALL + "/end", **MAIL)).headers
    api.product.agents[NODE].away = True
    late = await answer("DELETE", CALL + "/mail")
    assert (late.json()["msg"], late.headers["X-Wirelane-Pending"]) == ("success", NODE)
