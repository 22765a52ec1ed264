"""gateway/http/v1/server.py and system.py: the calls around servers."""

from __future__ import annotations

import time

import pytest

from gateway.http.v1 import account, server
from gateway.http.v1.calls import ROOT
from gateway.keypair import new_pair
from tests.fakes import direct
from tests.fakes.product import NODE
from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio


async def test_server_lives_from_add_to_delete(api: Api) -> None:
    made = await api.msg(
        "POST", "/wireguard", name="west", address="10.7.0.1/24", dns_2="", keep_alive="25", mtu="1380"
    )
    assert made["name"] == "west" and made["address"] == "10.7.0.1/24" and made["keep_alive"] == 25
    empty_is_absent = ("8.8.8.8", "1.1.1.1", False, False)  # on create; PUT with an empty text clears
    assert (made["dns_1"], made["dns_2"], made["ikev2"], made["internal_traffic"]) == empty_is_absent
    assert await api.msg("GET", "/wireguard/west") == made
    assert list(await api.msg("GET", "/wireguard")) == ["Default_1", "west"]
    edited = await api.msg("PUT", "/wireguard/west", internal_traffic="1", b_download="5", dns_1="")
    assert edited == {**made, "internal_traffic": True, "b_download": "5", "dns_1": ""}
    assert await api.msg("DELETE", "/wireguard/west") == "success"
    assert await api.error("GET", "/wireguard/west") == "Wireguard server not found"


async def test_server_that_is_not_there_is_not_found_by_any_call(api: Api) -> None:
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "/peers"), ("GET", "/available_ips")):
        for name in ("nowhere", "a%20b", "a%00b", *(("info",) if path else ())):  # /wireguard/info is a page of its own
            assert await api.error(method, f"/wireguard/{name}{path}") == "Wireguard server not found"
    assert await api.error("PUT", "/wireguard/nowhere/set_bandwidth") == "Wireguard server not found"
    assert await api.error("GET", "/wireguard/nowhere/dump") == "Wireguard server not found"


async def test_where_accounts_may_go_is_taken_and_told_to_the_node_and_v1_objects_keep_their_keys(api: Api) -> None:
    agent = api.product.agents[NODE]
    made = await api.msg("POST", "/wireguard", name="west", reach="Internet, 10.20.0.0/16")
    assert "reach" not in made
    answer = await api.http.put("/api/v1/wireguard/west", data={"reach": "internet,10.20.0.0/16"})
    assert "X-Wirelane-Ignored" not in answer.headers
    assert agent.servers["west"].reach == "internet,10.20.0.0/16"
    for text, kept in (("all", "all"), ("10.20.0.7", "10.20.0.7/32"), ("", "internet")):
        assert await api.msg("PUT", "/wireguard/west", reach=text) == made
        assert agent.servers["west"].reach == kept
    assert (await api.error("PUT", "/wireguard/west", reach="lan")).startswith("Wrong reach (only internet, all, or")
    assert agent.servers["west"].reach == "internet"


async def test_no_server_can_hide_the_online_page(api: Api) -> None:
    assert (await api.error("POST", "/wireguard", name="online")).startswith("Wrong name")
    assert await api.msg("GET", "/wireguard/online") == []


async def test_peers_are_a_map_by_name(api: Api) -> None:
    assert await api.msg("GET", "/wireguard/Default_1/peers") == {}
    made = await api.msg("POST", "/account", wg_name="Default_1", name="123-456-text")
    assert await api.msg("GET", "/wireguard/Default_1/peers") == {"123-456-text": made}
    assert await api.error("DELETE", "/wireguard/Default_1") == "Cannot be deleted. There are active peers."


async def test_available_addresses_are_ascending_and_lack_what_is_taken(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", allowed_IPs="10.0.0.5")
    free = await api.msg("GET", "/wireguard/Default_1/available_ips")
    assert free == [f"10.0.0.{number}" for number in range(2, 255) if number != 5]


async def test_set_bandwidth_gives_its_limits_to_all_accounts(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one", b_download="1", b_upload="1")
    assert await api.msg("PUT", "/wireguard/Default_1/set_bandwidth") == ""
    account = await api.msg("GET", "/account/one")
    assert (account["b_download"], account["b_upload"]) == ("12", "10")


async def test_dump_has_port_and_key(api: Api) -> None:
    server = await api.msg("GET", "/wireguard/Default_1")
    dump = {"port": server["listen_port"], "public_key": server["public_key"]}
    assert await api.msg("GET", "/wireguard/Default_1/dump") == dump


async def test_online_shows_who_had_a_handshake_lately(api: Api) -> None:
    for name in ("one", "two"):
        await api.msg("POST", "/account", wg_name="Default_1", name=name)
    agent = api.product.agents[NODE]
    by_name = {account.name: account for account in agent.accounts.values()}
    agent.handshake(by_name["one"].id, int(time.time()) - 10)
    agent.handshake(by_name["two"].id, int(time.time()) - 1000)
    (online,) = await api.msg("GET", "/wireguard/online")
    assert (online["name"], online["status"], online["endpoint"]) == ("one", "enable", "192.0.2.1:40000")
    assert set(map(type, online.values())) == {str}


async def test_system_status_counts_and_names_nodes_that_are_behind(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1")
    status = await api.msg("GET", "/system/status")
    assert (status["count_accounts"], status["count_wireguard"], status["license_valid"]) == (1, 1, True)
    assert [node["name"] for node in status["nodes"]] == [NODE]


async def test_every_answer_about_one_server_or_account_names_its_node_and_no_other_does(api: Api) -> None:
    await direct.add_node(api.product.store, "second", "unix:/second.sock", "second.example.com")
    await api.msg("POST", "/wireguard", node="second", name="there", address="10.9.0.1/24")
    await api.msg("POST", "/account", wg_name="there", name="anna")
    await api.msg("POST", "/account", wg_name="Default_1", name="bert")
    numbers = {"year": "2026", "month": "1"}
    forms = {
        f"{ROOT}/wireguard": {"node": "second", "name": "new"},
        f"{ROOT}/account": {"wg_name": "there", "name": "new"},
    }
    seen = set()
    # Deletes last, of accounts before servers.
    for call in sorted((*account.CALLS, *server.CALLS), key=lambda call: (call.method == "DELETE", call.path)):
        name = "anna" if call.path.startswith(f"{ROOT}/account") else "there"
        path = call.path.format(name=name, **numbers)
        answer = await api.http.request(call.method, path, data=forms.get(call.path) if call.method == "POST" else None)
        error = answer.json()["error"]
        assert error in ("", "IKEv2 is not enabled on this server", "Cannot be deleted. There are active peers."), path
        about_one = "{name}" in call.path or call.method == "POST"  # all others are about several
        assert answer.headers.get("X-Wirelane-Node") == ("second" if about_one and not error else None), path
        seen.add(answer.headers.get("X-Wirelane-Node"))
    assert seen == {"second", None}
    assert (await api.http.get("/api/v1/account/bert")).headers["X-Wirelane-Node"] == NODE


async def test_what_the_node_holds_of_a_server_is_told_in_v1_s_lines(api: Api) -> None:
    await api.msg("POST", "/wireguard", name="west", address="10.7.0.1/24", external_ip="198.51.100.7")
    nat = await api.msg("GET", "/wireguard/west/firewall_nat_rules")
    assert nat == "10.7.0.0/24 -> 0.0.0.0/0 SNAT to:198.51.100.7 Pkt:3 Bytes:180\n"
    assert await api.msg("GET", "/wireguard/west/firewall_filter_rules") == (
        "10.7.0.0/24 -> internet ACCEPT  Pkt:7 Bytes:420\n10.7.0.0/24 -> 10.7.0.0/24 DROP  Pkt:- Bytes:-\n"
    )
    roots = "eth0 --> qdisc htb 1: root eth0\n\nwg2 --> qdisc htb 1: root wg2\n\n"
    assert await api.msg("GET", "/wireguard/west/traffic_control") == roots


@pytest.mark.parametrize("page", ["firewall_nat_rules", "firewall_filter_rules", "traffic_control"])
async def test_a_live_read_of_a_server_says_whose_node_is_away_or_behind(api: Api, page: str) -> None:
    assert await api.error("GET", f"/wireguard/nowhere/{page}") == "Wireguard server not found"
    answer = await api.http.get(f"/api/v1/wireguard/Default_1/{page}")
    assert answer.headers["X-Wirelane-Node"] == NODE
    agent = api.product.agents[NODE]
    del agent.servers["Default_1"]
    behind = f"Node {NODE} has not applied this server yet, try again"
    assert await api.error("GET", f"/wireguard/Default_1/{page}") == behind
    agent.away = True
    assert await api.error("GET", f"/wireguard/Default_1/{page}") == f"Node {NODE} is not available"


async def test_a_reload_reaches_every_node_that_is_there(api: Api) -> None:
    await direct.add_node(api.product.store, "ams1", "unix:/run/other.sock")
    api.product.agents["ams1"].away = True
    assert await api.msg("PUT", "/system/reload") == "success"
    assert "resync" in api.product.agents[NODE].calls


async def test_an_edit_takes_every_field_of_a_create_but_name_and_interface(api: Api) -> None:
    pair = new_pair()
    form = {
        "private_key": pair.private.reveal(),
        "public_key": pair.public,
        "listen_port": "60000",
        "mtu": "1380",
        "keep_alive": "21",
        "allowed_ips": "10.0.0.0/8",
        "endpoint": "vpn7.example.com",
        "address": "10.77.0.1/24",
        "internal_traffic": "true",
        "external_ip": "198.51.100.7",
        "dns_1": "9.9.9.9",
        "dns_2": "",
        "ipv6": "1",
        "address_ipv6": "fd00:7::1/64",
        "dns_1_ipv6": "2620:fe::fe",
        "dns_2_ipv6": "",
        "b_download": "77",
        "b_upload": "7",
        "ikev2": "1",
    }
    declared = {field.name for call in server.CALLS if call.path == f"{ROOT}/wireguard" for field in call.fields}
    assert set(form) | {"name", "interface_name", "node", "reach", "nat_ipv6"} == declared
    answer = await api.http.put("/api/v1/wireguard/Default_1", data=form)
    found = answer.json()["msg"]
    assert "x-wirelane-ignored" not in answer.headers
    for name in set(form) & set(found):
        assert found[name] in (form[name], form[name] in ("1", "true"), 21), name
    kept = await api.product.servers.get("Default_1")
    assert (kept.mtu, kept.allowed_ips, kept.endpoint) == (1380, "10.0.0.0/8", "vpn7.example.com")
