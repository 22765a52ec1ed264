"""Every curl example of v1's Accounts page, replayed by curl itself against a gateway made to hold what they name.

v1_examples.json was taken from that page: for each example its method, path and form, and of its answer every key and
type. Answers are compared key by key and type by type.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.fields import new_account, server_values
from tests.contract.served import Served, served
from tests.fakes.product import migrated_sqlite

EXAMPLES = json.loads(Path(__file__).with_name("v1_examples.json").read_text())
PEER_10 = {
    "allowed_IPs": "10.0.105.18",
    "b_download": "20",
    "b_upload": "20",
    "name": "peer_10",
    "password": "dH4%%2M2%B",
    "private_key": "GNuP0siryMimPSuF7Hnmw0D7gY7FXzoY6IgUmt1uuXc=",
    "public_key": "7C5u5vZk051iA5W2zfbxjlZDgAdm7HdRFRgarI8nBw4=",
    "status": "enable",
    "username": "user_10",
    "wg_name": "Default_106",
}
NAMES = {"common_name": "vpn.example.com", "organization": "Example"}
TYPES = {str: "text", int: "integer", bool: "boolean"}

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The installation that the examples speak of."""
    with served(migrated_sqlite(tmp_path_factory.mktemp("examples") / "gateway.db")) as gateway:
        servers, accounts = gateway.product.servers, gateway.product.accounts
        for name, address in (("Default_106", "10.0.105.1/24"), ("77_87_125_209", "10.0.110.1/24")):
            gateway.do(servers.create(server_values({"name": name, "address": address, "ikev2": "1"})))
        ikev2 = gateway.product.ikev2
        gateway.do(ikev2.make_authority(NAMES))
        gateway.do(ikev2.make_server(NAMES, "vpn.example.com", "198.51.100.7", ""))
        gateway.do(ikev2.switch(True))
        for _ in range(9):  # marks 100-108: peer_10 has 109
            gateway.do(accounts.create(new_account({"wg_name": "Default_106"})))
        gateway.do(accounts.create(new_account(PEER_10)))
        for name in ("ruslan_dom_pc", "ruslan_pc", "ruslan_telefon"):
            gateway.do(accounts.create(new_account({"wg_name": "77_87_125_209", "name": name})))
        yield gateway


def curl(gateway: Served, *options: str, path: str) -> dict[str, Any]:
    command = ["curl", "--silent", "--show-error", "--max-time", "30", "-b", f"access_hash={gateway.access_hash}"]
    run = subprocess.run([*command, *options, gateway.url + path], capture_output=True, timeout=60, check=True)
    found = json.loads(run.stdout)
    assert isinstance(found, dict)
    return found


def shape(value: Any) -> Any:
    """Keys and types of a value; a list is the shape that all its items have."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        shapes = [shape(item) for item in value]
        assert all(item == shapes[0] for item in shapes)
        return shapes[:1]
    return TYPES[type(value)]


@pytest.mark.parametrize("example", EXAMPLES, ids=[example["title"] for example in EXAMPLES])
def test_example_has_the_documented_keys_and_types(gateway: Served, example: dict[str, Any]) -> None:
    data = "&".join(f"{key}={value}" for key, value in example["form"].items())
    answer = curl(gateway, *(["-d", data] if data else []), "-X", example["method"], path=example["path"])
    assert (answer["error"], answer["status"]) == ("", "success")
    assert shape(answer) == example["answer"]
    assert len(answer["msg"]) == example.get("count", len(answer["msg"]))
    for key, value in example["form"].items():
        assert answer["msg"][key] == value


@pytest.mark.parametrize("example", EXAMPLES, ids=[example["title"] for example in EXAMPLES])
def test_example_without_its_cookie_is_not_authorized(gateway: Served, example: dict[str, Any]) -> None:
    answer = curl(gateway, "-b", "access_hash=" + "e" * 80, "-X", example["method"], path=example["path"])
    assert answer == {"error": "Not authorized", "msg": "", "status": "error"}


@pytest.mark.parametrize(
    "example",
    [example for example in EXAMPLES if "Account not found" in example["errors"] and example["method"] != "POST"],
    ids=lambda example: example["title"],
)
def test_example_for_an_unknown_account_is_not_found(gateway: Served, example: dict[str, Any]) -> None:
    path = re.sub("/account/[^/]+", "/account/nobody", example["path"])
    answer = curl(gateway, "-X", example["method"], path=path)
    assert answer == {"error": "Account not found", "msg": "", "status": "error"}


def test_peer_10_is_the_documented_one_to_the_letter(gateway: Served) -> None:
    """Its public key follows from its private key, its class from its mark: both are computed here, not stored."""
    assert curl(gateway, path="/api/v1/account/peer_10")["msg"] == {**PEER_10, "mangle": "109"}
    assert curl(gateway, path="/api/v1/account/peer_10/firewall_mangle_rules")["msg"] == (
        "0.0.0.0/0 -> 10.0.105.18 MARK 0x6d Pkt:0 Bytes:0\n10.0.105.18 -> 0.0.0.0/0 MARK 0x6d Pkt:0 Bytes:0\n"
    )
    assert curl(gateway, path="/api/v1/account/peer_10/dump")["msg"] == {
        "allowed_ips": "10.0.105.18/32",
        "endpoint": "(none)",
        "keepalive": "off",
        "latest_handshake": "0",
        "transfer_rx": "0",
        "transfer_tx": "0",
    }
    assert re.fullmatch(
        r"eth0 --> class htb 1:109 .* rate 20Mbit ceil 20Mbit .*\n Sent .*\n backlog .*\n\n"
        r"wg[0-9]+ --> class htb 1:109 .* rate 20Mbit ceil 20Mbit .*\n Sent .*\n backlog .*\n\n",
        curl(gateway, path="/api/v1/account/peer_10/traffic_control")["msg"],
    )


def test_put_with_a_form_of_many_parts(gateway: Served) -> None:
    """What PHP's curl sends for an array of fields."""
    options = ["-X", "PUT", "-F", "b_download=33", "-F", "status=disable"]
    answer = curl(gateway, *options, path="/api/v1/account/ruslan_pc")["msg"]
    assert (answer["b_download"], answer["status"]) == ("33", "disable")


def test_key_whose_plus_became_a_blank_is_invalid(gateway: Served) -> None:
    key = "sdxzHEBOdgm9ZzRn2tw2bzdnU1v7mUp1plpAU+craSo="
    answer = curl(gateway, "-d", f"wg_name=Default_106&public_key={key}", path="/api/v1/account")
    assert answer["error"] == "Keys are invalid"
    answer = curl(gateway, "-d", "wg_name=Default_106", "--data-urlencode", f"public_key={key}", path="/api/v1/account")
    assert answer["msg"]["public_key"] == key and answer["msg"]["private_key"] == ""
