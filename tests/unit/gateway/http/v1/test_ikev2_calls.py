"""gateway/http/v1/ikev2.py and what of IKEv2 is about servers and accounts."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import update

from gateway import certificates
from gateway.live import Session
from gateway.model import Responder
from gateway.store.tables import ikev2
from tests.fakes.product import NODE
from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio
CA = {"ca_common_name": "Example CA", "ca_organization": "Example Ltd", "ca_country_name": "PL"}
SERVER = {
    "server_domain": "vpn.example.com",
    "server_ip": "198.51.100.7",
    "server_common_name": "vpn.example.com",
    "server_organization": "Example Ltd",
}
NO_ROOT, NO_SERVER = (
    "The ROOT certificate is not present in the system",
    "The SERVER certificate is not present in the system",
)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "BITS", 2048)


async def turned_on(api: Api) -> dict[str, Any]:
    await api.msg("PUT", "/ikev2/generate_ca_rsa", **CA)
    await api.msg("PUT", "/ikev2/generate_server_rsa", **SERVER)
    await api.msg("PUT", "/wireguard/Default_1", ikev2="1")
    found = await api.msg("PUT", "/ikev2", enabled="1")
    assert isinstance(found, dict)
    return found


def responder_of(api: Api) -> Responder | None:
    return api.product.agents[NODE].servers["Default_1"].responder


def passwords(api: Api) -> set[str]:
    return {account.password.reveal() for account in api.product.agents[NODE].accounts.values()} - {""}


async def test_it_is_told_when_the_certificate_ends_while_it_is_shown(api: Api) -> None:
    assert (await api.product.system.fleet()).ikev2_ends == 0
    found = await turned_on(api)
    ends = x509.load_pem_x509_certificate(found["server_cert"].encode()).not_valid_after_utc
    assert (await api.product.system.fleet()).ikev2_ends == ends.timestamp()
    await api.product.store.change(lambda tx: tx.run(update(ikev2).values(sealed=b"nobody can open this")))
    assert (await api.product.system.fleet()).ikev2_ends == 0, "and all else is told"


async def test_three_calls_turn_it_on_and_the_node_is_told(api: Api) -> None:
    agent = api.product.agents[NODE]
    await api.msg("POST", "/account", wg_name="Default_1", name="one", username="u1", password="secret 1")
    assert responder_of(api) is None and not passwords(api)
    found = await turned_on(api)
    assert found["enabled"] is True and found["server_domain"] == "vpn.example.com"
    assert found["ca_organization"] == "Example Ltd" and found["server_locality"] == ""
    responder = responder_of(api)
    assert responder is not None and responder.identity == "vpn.example.com"
    assert (responder.certificate, responder.authority) == (found["server_cert"], found["ca_cert"])
    assert [str(a) for a in (agent.servers["Default_1"].dns_1, agent.servers["Default_1"].dns_2)] == [
        "8.8.8.8",
        "1.1.1.1",
    ]
    (account,) = agent.accounts.values()
    assert (account.username, account.password.reveal()) == ("u1", "secret 1")
    assert await api.msg("GET", "/ikev2/config") == found
    assert "PRIVATE KEY" not in json.dumps(found)


async def test_turning_it_off_takes_logins_and_key_from_the_node(api: Api) -> None:
    await turned_on(api)
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    assert passwords(api)
    for off, on in (
        (("PUT", "/ikev2", {"enabled": "0"}), ("PUT", "/ikev2", {"enabled": "true"})),
        (("PUT", "/wireguard/Default_1", {"ikev2": "0"}), ("PUT", "/wireguard/Default_1", {"ikev2": "true"})),
        (("DELETE", "/ikev2/delete_server_rsa", {}), ("PUT", "/ikev2/generate_server_rsa", SERVER)),
    ):
        await api.msg(off[0], off[1], **off[2])
        assert responder_of(api) is None and not passwords(api)
        await api.msg(on[0], on[1], **on[2])
    await api.msg("PUT", "/ikev2", enabled="1")
    assert responder_of(api) is not None
    gone = await api.msg("DELETE", "/ikev2/delete_ca_rsa")
    assert gone["enabled"] is False and gone["ca_cert"] == gone["server_cert"] == gone["ca_common_name"] == ""
    assert responder_of(api) is None


async def test_another_password_or_resolver_reaches_the_node_where_logins_are(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    agent = api.product.agents[NODE]
    before = len(agent.patches)
    await api.msg("PUT", "/account/one", password="another 1")
    await api.msg("PUT", "/wireguard/Default_1", dns_1="9.9.9.9")
    assert len(agent.patches) == before, "without IKEv2 neither is the node's business"
    await turned_on(api)
    await api.msg("PUT", "/account/one", password="another 2")
    await api.msg("PUT", "/wireguard/Default_1", dns_1="9.9.9.10")
    (account,) = agent.accounts.values()
    assert account.password.reveal() == "another 2" and str(agent.servers["Default_1"].dns_1) == "9.9.9.10"


async def test_errors_are_those_of_v1(api: Api) -> None:
    for method, path, form, error in (
        ("PUT", "/ikev2/generate_ca_rsa", {"ca_organization": "x"}, "Common Name must be filled"),
        (
            "PUT",
            "/ikev2/generate_ca_rsa",
            {"ca_common_name": "x", "ca_organization": " "},
            "Organization must be filled",
        ),
        ("PUT", "/ikev2/import_ca_rsa", {"ca_key": "x"}, "CaCert must be filled"),
        ("PUT", "/ikev2/import_ca_rsa", {"ca_cert": "x"}, "CaKey must be filled"),
        ("PUT", "/ikev2/import_ca_rsa", {"ca_cert": "x", "ca_key": "y"}, "Certificate not found"),
        ("PUT", "/ikev2/generate_server_rsa", SERVER, "The root certificate is not present in the system"),
        ("PUT", "/ikev2", {"enabled": "1"}, NO_ROOT),
        ("DELETE", "/ikev2/delete_ca_rsa", {}, NO_ROOT),
        ("DELETE", "/ikev2/delete_server_rsa", {}, NO_ROOT),
    ):
        assert await api.error(method, path, **form) == error
    await api.msg("PUT", "/ikev2/generate_ca_rsa", **CA)
    for method, path, form, error in (
        ("PUT", "/ikev2/generate_ca_rsa", CA, "The root certificate is already in the system"),
        (
            "PUT",
            "/ikev2/import_ca_rsa",
            {"ca_cert": "x", "ca_key": "y"},
            "The root certificate is already in the system",
        ),
        ("PUT", "/ikev2/generate_server_rsa", {**SERVER, "server_domain": ""}, "Server Domain must be filled"),
        ("PUT", "/ikev2/generate_server_rsa", {**SERVER, "server_ip": ""}, "Server IP must be filled"),
        ("PUT", "/ikev2/generate_server_rsa", {**SERVER, "server_common_name": ""}, "Common Name must be filled"),
        ("PUT", "/ikev2/generate_server_rsa", {**SERVER, "server_organization": ""}, "Organization must be filled"),
        ("PUT", "/ikev2", {"enabled": "1"}, NO_SERVER),
        ("DELETE", "/ikev2/delete_server_rsa", {}, NO_SERVER),
    ):
        assert await api.error(method, path, **form) == error
    for name, value in (
        ("server_ip", "here"),
        ("server_domain", "a b"),
        ("server_ipv6", "1.2.3.4"),
        ("enabled", "yes"),
    ):
        path = "/ikev2" if name == "enabled" else "/ikev2/generate_server_rsa"
        assert (
            await api.error("PUT", path, **{**SERVER, name: value})
            == f"Wrong {name} ("
            + {
                "server_ip": "only an IPv4 address)",
                "server_domain": "only a domain, or an IP address)",
                "server_ipv6": "only an IPv6 address)",
                "enabled": "only 1, 0, true or false)",
            }[name]
        )


async def test_a_profile_is_what_strongswan_takes(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one", username="u1")
    assert await api.error("GET", "/account/one/ikev2_profile") == "IKEv2 is not enabled on this server"
    found = await turned_on(api)
    made = json.loads(await api.msg("GET", "/account/one/ikev2_profile"))
    der = x509.load_pem_x509_certificate(found["ca_cert"].encode()).public_bytes(Encoding.DER)
    assert base64.b64decode(made["remote"]["cert"], validate=True) == der
    assert (made["remote"]["addr"], made["remote"]["id"]) == ("vpn.example.com", "vpn.example.com")
    assert made["local"] == {"eap_id": "u1"} and made["type"] == "ikev2-eap"
    await api.msg("PUT", "/ikev2", enabled="0")
    assert await api.error("GET", "/account/one/ikev2_profile") == "IKEv2 is not enabled on this server"


async def test_who_is_online_is_told_and_can_be_put_out(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one", username="u1")
    assert await api.msg("GET", "/ikev2/online") == []
    await turned_on(api)
    agent = api.product.agents[NODE]
    (number,) = agent.accounts
    now = int(time.time())
    for age, uptime in (
        (11, "11 seconds"),
        (1, "1 second"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7300, "2 hours"),
    ):
        agent.sessions = [Session(number, "203.0.113.9", now - age)]
        (found,) = await api.msg("GET", "/ikev2/online")
        assert found.pop("uptime") in (
            f" {uptime} ago",
            f" {uptime.replace('11 ', '12 ').replace('1 second', '2 seconds')} ago",
        )
    assert found == {
        **{"name": "one", "username": "u1", "wg_name": "Default_1", "status": "enable", "allowed_IPs": "10.0.0.2"},
        **{"b_download": "12", "b_upload": "10", "endpoint": "203.0.113.9"},
    }
    assert await api.msg("DELETE", "/ikev2/online/one") == "success"
    assert await api.msg("GET", "/ikev2/online") == []
    assert await api.error("DELETE", "/ikev2/online/nobody") == "Account not found"
    agent.away = True
    assert await api.msg("GET", "/ikev2/online") == []
    assert (await api.error("DELETE", "/ikev2/online/one")).startswith(f"Node {NODE}")


async def test_what_answers_is_told(api: Api) -> None:
    assert await api.msg("GET", "/ikev2/info") == {"strongswan": "", "pid_charon": "", "pid_starter": ""}
    api.product.agents[NODE].ikev2 = ("strongSwan 5.9.8", 4711)
    await api.msg("PUT", "/wireguard/Default_1", mtu="1400")  # the status is read again
    for _ in range(50):
        if (found := await api.msg("GET", "/ikev2/info"))["pid_charon"]:
            break
        await asyncio.sleep(0.05)
    assert found == {"strongswan": "5.9.8", "pid_charon": "4711", "pid_starter": ""}
