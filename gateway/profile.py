"""What a client is given: WireGuard configuration text, its QR picture, profiles of IKEv2. Pure.

Never decides anything (endpoint, keys and addresses come in), never does I/O. Called by gateway/http.
"""

from __future__ import annotations

import base64
import json
import plistlib
import struct
import uuid
import zlib
from itertools import chain

import segno

from gateway.endpoint import with_port
from gateway.model import Account, Server

KEPT_KEY = "# PrivateKey = (yours)"  # a comment: the text stays valid for wg-quick
ALL_TRAFFIC = ("0.0.0.0/0", "::/0")
PICTURE = 500  # pixels, each side; v1
QUIET_ZONE = 4  # modules of white that ISO/IEC 18004 asks for around a code
VERSION = 11  # v1's size; level M holds 251 bytes in it
PROFILES = uuid.UUID("5f6d1b1c-93a4-4a07-8d34-3c6f0f5c2a7e")  # our namespace: a profile's uuid must never change


def config_text(account: Account, server: Server, endpoint: str, tabs: bool = False, mtu: int = 0) -> str:
    """The client's configuration file. `endpoint`: IP or domain. `tabs`: indent as the original panel did.

    `mtu`: bytes, where the server names none; 0 = no line of it.
    """
    addresses = [f"{account.address}/{server.address.network.prefixlen}"]
    resolvers: list[object] = [server.dns_1, server.dns_2]
    if account.address_ipv6 and server.address_ipv6:
        addresses.append(f"{account.address_ipv6}/{server.address_ipv6.network.prefixlen}")
        resolvers += [server.dns_1_ipv6, server.dns_2_ipv6]
    interface = [f"Address = {','.join(addresses)}"]
    dns = ",".join(str(address) for address in resolvers if address)
    if dns:
        interface.append(f"DNS = {dns}")
    interface.append(f"PrivateKey = {account.private_key.reveal()}" if account.private_key else KEPT_KEY)
    if mtu := server.mtu or mtu:
        interface.append(f"MTU = {mtu}")
    peer = [f"PersistentKeepalive = {server.keep_alive}"] if server.keep_alive else []
    peer += [
        f"AllowedIPs = {server.allowed_ips or ','.join(ALL_TRAFFIC[: len(addresses)])}",
        f"Endpoint = {with_port(endpoint, server.listen_port)}",
        f"PublicKey = {server.public_key}",
    ]
    if account.preshared_key:
        peer.append(f"PresharedKey = {account.preshared_key.reveal()}")
    indent = "\t" if tabs else ""
    lines = chain(
        ["[Interface]"], (indent + line for line in interface), [indent], ["[Peer]"], (indent + line for line in peer)
    )
    return "\n".join(lines)


def config_qr(text: str) -> bytes:
    """The text as a QR code: a PNG of 500x500, 1 bit, palette. Raises ValueError above 2331 bytes (version 40)."""
    try:
        code = segno.make_qr(text, error="m", version=VERSION, mode="byte", encoding="utf-8", boost_error=False)
    except segno.DataOverflowError:
        code = segno.make_qr(text, error="m", mode="byte", encoding="utf-8", boost_error=False)
    return _png(_enlarged(code.matrix))


def ikev2_profile(account: Account, host: str, identity: str, authority: bytes) -> str:
    """A profile for strongSwan's Android app. `host`: where it connects to, of the account's own node; `identity`: what
    the certificate there says. `authority`: the DER certificate of the CA; the app wants it bare."""
    profile = {
        "uuid": str(uuid.uuid5(PROFILES, str(account.id))),
        "name": host,
        "type": "ikev2-eap",
        "remote": {"addr": host, "id": identity, "cert": base64.b64encode(authority).decode()},
        "local": {"eap_id": account.username},
    }
    return json.dumps(profile, indent=2)


def mobileconfig(account: Account, host: str, identity: str, authority: bytes) -> bytes:
    """A configuration profile for Apple's devices: the CA and a VPN by it. The password is asked for at its first use:
    the file lies around afterwards. Source: developer.apple.com, "VPN.IKEv2" and "CertificateRoot"."""

    def payload(kind: str, title: str, **content: object) -> dict[str, object]:
        number = str(uuid.uuid5(PROFILES, f"{account.id} {kind}")).upper()
        named = {"PayloadType": kind, "PayloadVersion": 1, "PayloadUUID": number, "PayloadDisplayName": title}
        return {**named, "PayloadIdentifier": f"wirelane.{number.lower()}", **content}

    protection = {"EncryptionAlgorithm": "AES-256-GCM", "IntegrityAlgorithm": "SHA2-384", "DiffieHellmanGroup": 20}
    vpn = {
        "RemoteAddress": host,
        "RemoteIdentifier": identity,
        "LocalIdentifier": account.username,
        "AuthenticationMethod": "None",  # but for what EAP proves
        "ExtendedAuthEnabled": 1,
        "AuthName": account.username,
        "IKESecurityAssociationParameters": protection,
        "ChildSecurityAssociationParameters": protection,
        "DeadPeerDetectionRate": "Medium",
    }
    whole = payload(
        "Configuration",
        f"VPN {identity}",
        PayloadContent=[
            payload("com.apple.security.root", f"CA of {identity}", PayloadContent=authority),
            payload("com.apple.vpn.managed", f"VPN {identity}", UserDefinedName=identity, VPNType="IKEv2", IKEv2=vpn),
        ],
    )
    return plistlib.dumps(whole, sort_keys=False)


def windows_commands(identity: str, file_name: str) -> str:
    """For PowerShell. Without the last one Windows offers what is not safe any more, and is refused."""
    return "\n".join(
        (
            f"Import-Certificate -FilePath '{file_name}' -CertStoreLocation Cert:\\LocalMachine\\Root",
            f"Add-VpnConnection -Name '{identity}' -ServerAddress '{identity}' -TunnelType IKEv2 "
            "-AuthenticationMethod Eap -EncryptionLevel Required -RememberCredential",
            f"Set-VpnConnectionIPsecConfiguration -ConnectionName '{identity}' "
            "-AuthenticationTransformConstants GCMAES256 -CipherTransformConstants GCMAES256 -EncryptionMethod AES256 "
            "-IntegrityCheckMethod SHA384 -DHGroup ECP384 -PfsGroup None -Force",
        )
    )


def _enlarged(modules: tuple[bytearray, ...]) -> list[list[int]]:
    """Modules (1 = dark) as rows of pixels: the largest whole number of pixels a module, centred in white."""
    scale = PICTURE // (len(modules) + 2 * QUIET_ZONE)
    before = (PICTURE - len(modules) * scale) // 2
    after = PICTURE - len(modules) * scale - before
    blank = [0] * PICTURE
    rows = [blank] * before
    for line in modules:
        row = [0] * before + [bit for bit in line for _ in range(scale)] + [0] * after
        rows += [row] * scale
    return rows + [blank] * after


def _png(rows: list[list[int]]) -> bytes:
    """Rows of 0 (white) and 1 (black) as a PNG, colour type 3, depth 1 (PNG specification, 11.2 and 9.2)."""
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 1, 3, 0, 0, 0)
    pixels = b"".join(b"\0" + _packed(row) for row in rows)  # filter type 0 for each line
    body = (
        (b"IHDR", header),
        (b"PLTE", b"\xff\xff\xff\x00\x00\x00"),
        (b"IDAT", zlib.compress(pixels, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in body)


def _packed(row: list[int]) -> bytes:
    width = -len(row) % 8
    bits = "".join("1" if pixel else "0" for pixel in row) + "0" * width
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
