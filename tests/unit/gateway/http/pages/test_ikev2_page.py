"""What of IKEv2 the one-time page gives, as a device reads it."""

from __future__ import annotations

import base64
import html
import json
import plistlib
import re

import httpx
import pytest
from cryptography import x509

from gateway import certificates
from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio
NAMES = {"common_name": "vpn.example.com", "organization": "Example"}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "BITS", 2048)


async def page(api: Api) -> str:
    await api.msg("POST", "/account", wg_name="Default_1", name="one", username="u1", password='a<b>&"1')
    path = httpx.URL(await api.msg("GET", "/account/one/otl")).path
    return (await api.http.post(path)).text


def file(text: str, name: str) -> tuple[str, str, bytes]:
    """Its name, media type and content."""
    found = re.search(rf'id="{name}" download="([^"]+)" href="data:([^;]+);base64,([^"]+)"', text)
    assert found is not None
    return found[1], found[2], base64.b64decode(found[3], validate=True)


async def test_a_server_without_it_shows_nothing_of_it(api: Api) -> None:
    assert "IKEv2" not in await page(api)


async def test_each_device_gets_what_it_takes(api: Api) -> None:
    service = api.product.ikev2
    await service.make_authority(NAMES)
    await service.make_server(NAMES, "vpn.example.com", "198.51.100.7", "")
    await service.switch(True)
    await api.msg("PUT", "/wireguard/Default_1", ikev2="1")
    text = await page(api)
    assert re.search(r"username <strong>u1</strong>", text)
    found = re.search(r'<code id="password">(.*?)</code>', text)
    assert found and html.unescape(found[1]) == 'a<b>&"1' and "<b>" not in text
    name, kind, authority = file(text, "ca")
    assert (name, kind) == ("one-ca.crt", "application/x-x509-ca-cert")
    assert x509.load_der_x509_certificate(authority).subject.rfc4514_string() == "CN=vpn.example.com,O=Example"
    name, kind, android = file(text, "android")
    assert (name, kind) == ("one.sswan", "application/vnd.strongswan.profile")
    assert json.loads(android) == json.loads(await api.msg("GET", "/account/one/ikev2_profile"))
    name, kind, apple = file(text, "apple")
    assert (name, kind) == ("one.mobileconfig", "application/x-apple-aspen-config")
    whole = plistlib.loads(apple)
    root, vpn = whole["PayloadContent"]
    assert root["PayloadType"] == "com.apple.security.root" and root["PayloadContent"] == authority
    assert vpn["VPNType"] == "IKEv2" and vpn["IKEv2"]["AuthName"] == vpn["IKEv2"]["LocalIdentifier"] == "u1"
    assert vpn["IKEv2"]["RemoteIdentifier"] == "vpn.example.com" and vpn["IKEv2"]["ExtendedAuthEnabled"] == 1
    assert len({one["PayloadUUID"] for one in (whole, root, vpn)}) == 3, "each is told from the others"
    assert b"a&lt;b" not in apple and b"a<b" not in android, "who finds the file has no password"
    assert "Import-Certificate -FilePath &#x27;one-ca.crt&#x27;" in text
