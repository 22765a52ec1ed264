"""gateway/http/v1/port_forwards.py: the calls, their errors, and what the node is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.product import NODE
from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio
CALL = "/wireguard/Default_1/port_forward"
WEB = {"dst_port": "8080", "protocol": "tcp", "to_peer": "one", "to_port": "80"}
TOLD = {"dst_port": 8080, "protocol": "tcp", "to_peer": "one", "to_port": 80}


def led(api: Api) -> dict[str, tuple[Any, ...]]:
    return {one.name: one.ports for one in api.product.agents[NODE].accounts.values() if one.ports}


async def two_accounts(api: Api) -> None:
    for name in ("one", "two"):
        await api.msg("POST", "/account", wg_name="Default_1", name=name)


async def test_a_port_leads_to_an_account_and_no_more(api: Api) -> None:
    await two_accounts(api)
    assert await api.msg("GET", CALL) == {}
    assert await api.msg("POST", CALL, **WEB) == TOLD
    game = {"dst_port": "25565", "protocol": "UDP", "to_peer": "two", "to_port": "7777"}
    await api.msg("POST", CALL + "ing", **game)
    assert await api.msg("GET", CALL) == await api.msg("GET", CALL + "ing")
    found = await api.msg("GET", CALL)
    assert found == {
        "8080_tcp": TOLD,
        "25565_udp": {"dst_port": 25565, "protocol": "udp", "to_peer": "two", "to_port": 7777},
    }
    assert led(api) == {"one": (("tcp", 8080, 80),), "two": (("udp", 25565, 7777),)}
    await api.msg("PUT", "/account/two", status="disable")
    assert led(api)["two"], "it is kept for who is disabled"
    assert await api.msg("DELETE", CALL + "/8080/tcp") == "success"
    await api.msg("DELETE", "/account/two")
    assert await api.msg("GET", CALL) == led(api) == {}
    await api.msg("POST", CALL, **WEB | {"dst_port": "25565", "protocol": "udp"})
    assert led(api) == {"one": (("udp", 25565, 80),)}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"protocol": "sctp"}, "Protocol must be tcp or udp"),
        ({"protocol": ""}, "Protocol must be tcp or udp"),
        ({"dst_port": "0"}, "DST port must be within 1-65535"),
        ({"dst_port": "65536"}, "DST port must be within 1-65535"),
        ({"dst_port": "x"}, "DST port must be within 1-65535"),
        ({}, "DST port and protocol are already enabled"),
        ({"to_peer": "two"}, "DST port and protocol are already enabled"),
        ({"dst_port": "51821", "protocol": "udp"}, "DstPort cannot be ListenPort"),
        ({"dst_port": "8081", "to_port": "99999"}, "To port must be within 1-65535"),
        ({"dst_port": "8081", "to_peer": "nobody"}, "Entered incorrect peer"),
        ({"dst_port": "8081", "to_peer": ""}, "Entered incorrect peer"),
        ({"dst_port": "22"}, f"DST port 22/tcp is of node {NODE} itself"),
        ({"dst_port": "4500", "protocol": "udp"}, f"DST port 4500/udp is of node {NODE} itself"),
    ],
)
async def test_what_cannot_be_is_refused(api: Api, changes: dict[str, str], error: str) -> None:
    await two_accounts(api)
    await api.msg("POST", CALL, **WEB)
    assert await api.error("POST", CALL, **WEB | changes) == error
    assert led(api) == {"one": (("tcp", 8080, 80),)}


async def test_what_is_not_there_is_said(api: Api) -> None:
    assert await api.error("GET", "/wireguard/Nobody/port_forward") == "Wireguard server not found"
    assert await api.error("POST", "/wireguard/Nobody/port_forward", **WEB) == "Wireguard server not found"
    for path in ("/8080/tcp", "/8080/sctp", "/0/tcp", "/x/udp"):
        assert await api.error("DELETE", CALL + path) == "There is no such port forwarding"


async def test_a_server_does_not_get_a_port_that_leads_to_an_account(api: Api) -> None:
    await two_accounts(api)
    await api.msg("POST", CALL, **WEB | {"dst_port": "51822", "protocol": "udp"})
    assert await api.error("PUT", "/wireguard/Default_1", listen_port="51822") == "Port already in use"
    assert await api.error("POST", "/wireguard", listen_port="51822") == "Port already in use"
    made = await api.msg("POST", "/wireguard")
    assert isinstance(made, dict) and str(made["listen_port"]) != "51822"


async def test_what_the_node_listens_on_is_its_own(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await two_accounts(api)
    forwards = api.product.port_forwards
    statuses = forwards._sync.statuses()
    status = statuses[NODE]
    assert status is not None
    monkeypatch.setattr(
        forwards._sync, "statuses", lambda: {NODE: replace(status, listening=frozenset({("tcp", 8080)}))}
    )
    assert await api.error("POST", CALL, **WEB) == f"DST port 8080/tcp is of node {NODE} itself"
