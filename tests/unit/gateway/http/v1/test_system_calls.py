"""gateway/http/v1/system.py and firewall.py: the installation, its rules, and what of v1 is not served."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from tests.fakes import direct
from tests.fakes.product import NODE
from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio


async def test_the_host_and_the_licence_have_the_keys_of_v1(api: Api) -> None:
    found = await api.msg("GET", "/system/info")
    assert found["timezone"] == "UTC" and int(found["cpu_threads"]) >= 1
    licence = await api.msg("GET", "/license")
    assert datetime.fromisoformat(licence.pop("last_check")) < datetime.fromisoformat(licence["expiration_date"])
    assert licence == {"accounts": 34_475, "expiration_date": "2099-12-31T23:59:59Z", "key": "", "valid": True}


async def test_what_the_nodes_run_is_told_and_who_is_away_is_named_where_they_differ(api: Api) -> None:
    await api.msg("PUT", "/wireguard/Default_1", b_download="5")  # answered by the node: its status is known
    assert await api.msg("GET", "/wireguard/info") == {"wireguard": "userspace", "wireguard-tools": "not used"}
    told = {"ip_forward": "yes", "iproute2": "not used", "iptables": "iptables"}
    assert await api.msg("GET", "/firewall/info") == told
    await direct.add_node(api.product.store, "ams1", "unix:/run/other.sock")
    api.product.agents["ams1"].away = True
    assert (await api.msg("GET", "/wireguard/info"))["wireguard"] == f"{NODE}: userspace, ams1: unknown"


async def test_each_enabled_account_has_two_mark_rules_and_each_server_its_source(api: Api) -> None:
    account = await api.msg("POST", "/account", wg_name="Default_1", name="anna", username="anna_user")
    await api.msg("POST", "/account", wg_name="Default_1", name="off")
    await api.msg("PUT", "/account/off", status="disable")
    rules = {rule["name"]: rule for rule in await api.msg("GET", "/firewall/rules/mangle")}
    assert set(rules) == {"src_anna_anna_user", "dst_anna_anna_user"}
    address, same = account["allowed_IPs"], {"action": "MARK", "chain": "FORWARD", "set-mark": account["mangle"]}
    assert rules["src_anna_anna_user"] == {**same, "name": "src_anna_anna_user", "s_ip": address, "d_ip": "0.0.0.0/0"}
    assert rules["dst_anna_anna_user"] == {**same, "name": "dst_anna_anna_user", "s_ip": "0.0.0.0/0", "d_ip": address}
    await api.msg("POST", "/wireguard", name="west", address="10.7.0.1/24", external_ip="198.51.100.7")
    first, west = await api.msg("GET", "/firewall/rules/nat")
    assert (first["action"], first["to-source"]) == ("MASQUERADE", "")
    assert west == {
        **{"action": "SNAT", "chain": "POSTROUTING", "d_ip": "0.0.0.0/0", "s_ip": "10.7.0.0/24"},
        **{"name": "west_wg2", "to-source": "198.51.100.7"},
    }


async def test_what_is_forwarded_is_told_and_the_host_s_own_firewall_is_refused(api: Api) -> None:
    policies = {"policy_forward": "", "policy_input": "", "policy_output": ""}
    assert await api.msg("GET", "/firewall/conf") == {"internal_traffic": False, "ip_forward": True, **policies}
    await api.msg("PUT", "/wireguard/Default_1", internal_traffic="1")
    assert (await api.msg("GET", "/firewall/conf"))["internal_traffic"] is True
    assert "host" in await api.error("PUT", "/firewall/conf", policy_input="DROP")


@pytest.mark.parametrize(
    "path",
    [
        "/dns",
        "/system/traffic_logging",
        "/backups",
        "/backups/config",
        "/ikev2/advanced_settings",
    ],
)
async def test_what_is_not_served_says_what_is_instead(api: Api, path: str) -> None:
    for method in ("GET", "PUT"):
        assert len(await api.error(method, path)) > 30
    assert (await api.serve(http_status="semantic").http.get(f"/api/v1{path}")).status_code == 404


DEFAULTS = {
    "traffic_statistics_frequency": 5,
    "traffic_statistics_history": 2,
    "wireguard_handshake_uptime": 180,
}


async def test_what_the_api_sets_wins_over_the_file_until_it_is_given_up(api: Api) -> None:
    assert await api.msg("GET", "/system/config") == DEFAULTS
    assert (await api.msg("GET", "/system/status"))["set_by_api"] == []
    changed = {**DEFAULTS, "traffic_statistics_frequency": 10, "traffic_statistics_history": 0}
    form = {"traffic_statistics_frequency": "10", "traffic_statistics_history": "0"}
    assert await api.msg("PUT", "/system/config", **form) == changed
    assert await api.msg("PUT", "/system/config", wireguard_handshake_uptime="") == changed, "absent is unchanged"
    assert await api.msg("GET", "/system/config") == changed
    assert (await api.msg("GET", "/system/status"))["set_by_api"] == ["collect_seconds", "usage_months"]
    assert await api.msg("PUT", "/system/config/default") == DEFAULTS
    assert (await api.msg("GET", "/system/status"))["set_by_api"] == []


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("traffic_statistics_frequency", "0", "1-1440"),
        ("traffic_statistics_frequency", "1441", "1-1440"),
        ("traffic_statistics_history", "-1", "0-1200"),
        ("wireguard_handshake_uptime", "301", "1-300"),
        ("wireguard_handshake_uptime", "soon", "1-300"),
    ],
)
async def test_a_wrong_setting_is_named_and_none_of_the_call_is_set(
    api: Api, name: str, value: str, bounds: str
) -> None:
    form = {"traffic_statistics_frequency": "7", name: value}
    assert await api.error("PUT", "/system/config", **form) == f"Wrong {name} (only {bounds})"
    assert await api.msg("GET", "/system/config") == DEFAULTS


async def test_who_counts_as_online_is_as_the_api_set_it(api: Api) -> None:
    account = await api.msg("POST", "/account", wg_name="Default_1", name="anna")
    found = (await api.product.accounts.get(account["name"])).id
    api.product.agents[NODE].handshakes[found] = int(time.time()) - 100
    assert [one["name"] for one in await api.msg("GET", "/wireguard/online")] == ["anna"]
    await api.msg("PUT", "/system/config", wireguard_handshake_uptime="50")
    assert await api.msg("GET", "/wireguard/online") == []
