"""gateway/http/v1/system.py and firewall.py: the installation, its rules, and what of v1 is not served."""

from __future__ import annotations

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
    "path", ["/dns", "/system/traffic_logging", "/backups", "/backups/config", "/ikev2/advanced_settings"]
)
async def test_what_is_not_served_says_what_is_instead(api: Api, path: str) -> None:
    for method in ("GET", "PUT"):
        assert len(await api.error(method, path)) > 30
    assert (await api.serve(http_status="semantic").http.get(f"/api/v1{path}")).status_code == 404
