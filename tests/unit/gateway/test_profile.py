"""gateway/profile.py: the text that clients paste, the picture they scan, the profile they import."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import subprocess
import uuid
import zlib
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from gateway import profile
from gateway.model import Account, Secret, Server

SERVER = Server(
    id=1,
    node="local",
    name="Default_106",
    interface="wg106",
    private_key=Secret("unused"),
    public_key="Hkldth2Pdu/jnJ0NH4cjSlsun2pFdIUZXt0h5qaNzmA=",
    listen_port=51926,
    address=IPv4Interface("10.0.105.1/24"),
    dns_1=IPv4Address("8.8.8.8"),
    dns_2=IPv4Address("1.1.1.1"),
)
ACCOUNT = Account(
    id=7,
    name="peer_10",
    username="user_10",
    password=Secret("dH4%%2M2%B"),
    server="Default_106",
    node="local",
    address=IPv4Address("10.0.105.18"),
    private_key=Secret("GNuP0siryMimPSuF7Hnmw0D7gY7FXzoY6IgUmt1uuXc="),
    public_key="7C5u5vZk051iA5W2zfbxjlZDgAdm7HdRFRgarI8nBw4=",
    mark=109,
    download=20,
    upload=20,
    enabled=True,
)
TEXT = """[Interface]
Address = 10.0.105.18/24
DNS = 8.8.8.8,1.1.1.1
PrivateKey = GNuP0siryMimPSuF7Hnmw0D7gY7FXzoY6IgUmt1uuXc=

[Peer]
AllowedIPs = 0.0.0.0/0
Endpoint = 77.87.125.200:51926
PublicKey = Hkldth2Pdu/jnJ0NH4cjSlsun2pFdIUZXt0h5qaNzmA="""
# What zbarimg reads from the QR code of the v1 documents: the original panel indents with tabs.
TABBED = """[Interface]
\tAddress = 10.0.105.18/24
\tDNS = 8.8.8.8,1.1.1.1
\tPrivateKey = GNuP0siryMimPSuF7Hnmw0D7gY7FXzoY6IgUmt1uuXc=
\t
[Peer]
\tAllowedIPs = 0.0.0.0/0
\tEndpoint = 77.87.125.200:51926
\tPublicKey = Hkldth2Pdu/jnJ0NH4cjSlsun2pFdIUZXt0h5qaNzmA="""
EVERYTHING = replace(
    SERVER, mtu=1380, keep_alive=25, allowed_ips="10.0.0.0/8,192.168.0.0/16", dns_2=None, dns_1=IPv4Address("9.9.9.9")
)

needs_zbarimg = pytest.mark.skipif(shutil.which("zbarimg") is None, reason="zbarimg (package zbar-tools) is missing")
needs_wg_quick = pytest.mark.skipif(
    shutil.which("wg-quick") is None or os.geteuid() != 0, reason="wg-quick (wireguard-tools) is missing, or not root"
)


def scanned(picture: bytes, folder: Path) -> str:
    path = folder / "code.png"
    path.write_bytes(picture)
    run = subprocess.run(["zbarimg", "--raw", "--quiet", path], capture_output=True, timeout=30, check=True)
    return run.stdout.decode().removesuffix("\n")


def test_text_is_the_documented_example() -> None:
    assert profile.config_text(ACCOUNT, SERVER, "77.87.125.200") == TEXT


def test_tabs_are_what_the_original_wrote() -> None:
    assert profile.config_text(ACCOUNT, SERVER, "77.87.125.200", tabs=True) == TABBED


def test_optional_lines_stand_in_the_documented_order() -> None:
    assert profile.config_text(ACCOUNT, EVERYTHING, "vpn.example.com").split("\n") == [
        "[Interface]",
        "Address = 10.0.105.18/24",
        "DNS = 9.9.9.9",
        "PrivateKey = GNuP0siryMimPSuF7Hnmw0D7gY7FXzoY6IgUmt1uuXc=",
        "MTU = 1380",
        "",
        "[Peer]",
        "PersistentKeepalive = 25",
        "AllowedIPs = 10.0.0.0/8,192.168.0.0/16",
        "Endpoint = vpn.example.com:51926",
        "PublicKey = Hkldth2Pdu/jnJ0NH4cjSlsun2pFdIUZXt0h5qaNzmA=",
    ]


def test_a_preshared_key_is_the_last_line() -> None:
    secret = Secret("FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=")
    assert profile.config_text(replace(ACCOUNT, preshared_key=secret), SERVER, "77.87.125.200") == (
        f"{TEXT}\nPresharedKey = {secret.reveal()}"
    )


def test_a_node_with_narrow_tunnels_has_its_mtu_in_the_text_where_the_server_names_none() -> None:
    assert "MTU = 1380" in profile.config_text(ACCOUNT, SERVER, "192.0.2.1", mtu=1380).split("\n")
    assert "MTU = 1380" in profile.config_text(ACCOUNT, EVERYTHING, "192.0.2.1", mtu=1300).split("\n")


def test_server_without_dns_has_no_dns_line() -> None:
    assert "DNS" not in profile.config_text(ACCOUNT, replace(SERVER, dns_1=None, dns_2=None), "192.0.2.1")


def test_client_that_keeps_its_key_finds_a_comment_in_its_place() -> None:
    lines = profile.config_text(replace(ACCOUNT, private_key=Secret()), SERVER, "192.0.2.1").split("\n")
    assert lines[3] == "# PrivateKey = (yours)"


@needs_wg_quick
@pytest.mark.parametrize("server", [SERVER, EVERYTHING])
@pytest.mark.parametrize("key", [ACCOUNT.private_key, Secret()])
@pytest.mark.parametrize("tabs", [False, True])
def test_wg_quick_takes_the_text(server: Server, key: Secret, tabs: bool, tmp_path: Path) -> None:
    path = tmp_path / "client.conf"
    account = replace(ACCOUNT, private_key=key, preshared_key=key)
    path.write_text(profile.config_text(account, server, "192.0.2.1", tabs))
    path.chmod(0o600)
    run = subprocess.run(["wg-quick", "strip", path], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    assert ("\nPrivateKey = " in run.stdout.replace("\t", "")) == bool(key)
    assert ("\nPresharedKey = " in run.stdout.replace("\t", "")) == bool(key)
    assert "AllowedIPs = " in run.stdout and "Address" not in run.stdout


@pytest.mark.parametrize("text", [TEXT, TABBED, "x" * 252, "x" * 2331])
def test_picture_is_500_by_500_with_one_bit_and_a_palette(text: str) -> None:
    picture = profile.config_qr(text)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">IIBBB", picture[16:27]) == (500, 500, 1, 3, 0)
    assert picture[37:41] == b"PLTE"


@needs_zbarimg
@pytest.mark.parametrize("text", [TEXT, TABBED, "x" * 252, "[" * 2331])
def test_picture_scans_to_the_very_same_text(text: str, tmp_path: Path) -> None:
    assert scanned(profile.config_qr(text), tmp_path) == text


@needs_zbarimg
def test_longest_configuration_that_fields_let_through_still_fits(tmp_path: Path) -> None:
    networks = ",".join(f"10.100.{i}.0/24" for i in range(100))[:1500].rpartition(",")[0]
    server = replace(EVERYTHING, allowed_ips=networks, dns_2=IPv4Address("149.112.112.112"))
    text = profile.config_text(ACCOUNT, server, "a." * 126 + "a", tabs=True)
    assert len(text) > 1900
    assert scanned(profile.config_qr(text), tmp_path) == text


def test_code_is_version_11_where_the_text_fits_it() -> None:
    modules_11, modules_12 = 61, 65
    assert _first_dark_row(profile.config_qr("x" * 251)) == (500 - modules_11 * 7) // 2
    assert _first_dark_row(profile.config_qr("x" * 252)) == (500 - modules_12 * 6) // 2


def _first_dark_row(picture: bytes) -> int:
    start = picture.index(b"IDAT")
    (length,) = struct.unpack(">I", picture[start - 4 : start])
    pixels = zlib.decompress(picture[start + 4 : start + 4 + length])
    rows = [pixels[at + 1 : at + 64] for at in range(0, len(pixels), 64)]
    return next(number for number, row in enumerate(rows) if any(row))


def test_ikev2_profile_is_json_that_strongswan_takes() -> None:
    authority = bytes(range(256)) * 3
    made = json.loads(profile.ikev2_profile(ACCOUNT, "203.0.113.7", "vpn.example.com", authority))
    assert list(made) == ["uuid", "name", "type", "remote", "local"]
    assert made["name"] == made["remote"]["addr"] == "203.0.113.7" and made["remote"]["id"] == "vpn.example.com"
    assert made["type"] == "ikev2-eap"
    assert base64.b64decode(made["remote"]["cert"], validate=True) == authority
    assert made["local"] == {"eap_id": "user_10"}


def test_ikev2_profile_of_an_account_keeps_its_uuid() -> None:
    def number(account: Account, host: str) -> uuid.UUID:
        return uuid.UUID(json.loads(profile.ikev2_profile(account, host, host, b"x"))["uuid"])

    assert number(ACCOUNT, "a.example") == number(replace(ACCOUNT, download=1), "b.example")
    assert number(ACCOUNT, "a.example") != number(replace(ACCOUNT, id=8), "a.example")
