"""Clients of IKEv2 in namespaces of their own, by other hands than ours; and what a server shows them.

`client` is `charon-cmd`, which asks for an address of IPv4 and no other; `both_client` asks for one of each family, as
phones do.
"""

from __future__ import annotations

import datetime
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import vici
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.model import Ikev2, Secret
from tests.lab.ikev2 import SETTINGS
from tests.netns.tunnels import eventually

IDENTITY = "vpn.example.org"
PLUGINS = (
    "random nonce openssl x509 revocation constraints pubkey pkcs1 pkcs8 pem sha1 sha2 hmac md5 kdf {esp} "
    "kernel-netlink socket-default eap-identity eap-mschapv2"
)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: rsa.RSAPrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def credentials(identity: str = IDENTITY) -> Ikev2:
    now = datetime.datetime.now(datetime.UTC)
    ca, key = (rsa.generate_private_key(65537, 2048) for _ in range(2))

    def begun(subject: str, public: rsa.RSAPublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name("a test's CA"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
        )

    constraints = x509.BasicConstraints(ca=True, path_length=0)
    root = begun("a test's CA", ca.public_key()).add_extension(constraints, critical=True).sign(ca, hashes.SHA256())
    names, use = x509.SubjectAlternativeName([x509.DNSName(identity)]), [ExtendedKeyUsageOID.SERVER_AUTH]
    own = begun(identity, key.public_key()).add_extension(names, critical=False)
    own = own.add_extension(x509.ExtendedKeyUsage(use), critical=False)
    own_pem = own.sign(ca, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    root_pem = root.public_bytes(serialization.Encoding.PEM).decode()
    return Ikev2(own_pem, Secret(_pem(key)), root_pem, identity, (IPv4Address("10.77.0.1"),))


@contextmanager
def client(
    namespace: str,
    folder: Path,
    username: str,
    password: str,
    authority: str,
    server: str = "192.0.2.1",
    *,
    claims: str = "",
    esp: str = "kernel-libipsec",
) -> Iterator[Path]:
    """charon-cmd; yields the file of what it says. `claims`: what it calls itself, if not its username."""
    folder.mkdir(parents=True, exist_ok=True)
    conf, ca, says = folder / "strongswan.conf", folder / "ca.pem", folder / "says"
    ca.write_text(authority)
    conf.write_text(SETTINGS.format(plugins=PLUGINS.format(esp=esp), says=says))
    says.write_text("")
    words = ["charon-cmd", "--host", server, "--identity", claims or username, "--remote-identity", IDENTITY]
    words += ["--cert", str(ca), "--profile", "ikev2-eap"]
    words += ["--eap-identity", username] if claims else []
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "STRONGSWAN_CONF": str(conf)},
        text=True,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(f"{password}\n")
        process.stdin.flush()
        yield says
    finally:
        process.stdin.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# What it logs of keys is for a test that sends what an honest client would not.
BOTH_SETTINGS = """\
charon-systemd {{
  load = {plugins} vici updown
  journal {{
    default = -1
  }}
  filelog {{
    says {{
      path = {says}
      flush_line = yes
      default = 1
      chd = 4
      ike = 2
    }}
  }}
  plugins {{
    vici {{
      socket = unix://{control}
    }}
    updown {{
      dns_handler = yes
    }}
  }}
}}
"""


@contextmanager
def both_client(
    namespace: str,
    folder: Path,
    username: str,
    password: str,
    authority: str,
    server: str,
    *,
    esp: str = "kernel-libipsec",
    vips: tuple[str, ...] = ("0.0.0.0", "::"),
) -> Iterator[Path]:
    """A charon of its own, told over its socket; yields the file of what it says. `given` beside it: what else it was
    told, as its updown script is."""
    folder.mkdir(parents=True, exist_ok=True)
    conf, control, says = folder / "strongswan.conf", folder / "vici", folder / "says"
    script = folder / "updown"
    script.write_text(f"#!/bin/sh\nenv >{folder}/given\n")
    script.chmod(0o700)
    conf.write_text(BOTH_SETTINGS.format(plugins=PLUGINS.format(esp=esp), says=says, control=control))
    says.write_text("")
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, "/usr/sbin/charon-systemd"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "STRONGSWAN_CONF": str(conf)},
    )
    try:
        _dial(folder, username, password, authority, server, vips)
        yield says
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _dial(folder: Path, username: str, password: str, authority: str, server: str, vips: tuple[str, ...]) -> None:
    with socket.socket(socket.AF_UNIX) as charon:
        charon.settimeout(10)
        eventually(lambda: charon.connect_ex(str(folder / "vici")) == 0)
        session = vici.Session(charon)
        session.load_cert({"type": "X509", "flag": "CA", "data": authority})
        session.load_shared({"type": "EAP", "data": password, "owners": [username]})
        connection = {
            "version": "2",
            "remote_addrs": [server],
            "vips": list(vips),
            "local": {"auth": "eap", "id": username, "eap_id": username},
            "remote": {"auth": "pubkey", "id": IDENTITY},
            "children": {"all": {"remote_ts": ["0.0.0.0/0", "::/0"], "updown": str(folder / "updown")}},
        }
        session.load_conn({"out": connection})
        list(session.initiate({"child": "all", "timeout": "-1"}))  # a generator; it does not wait


def is_in(says: Path) -> bool:
    return "installing new virtual IP" in says.read_text()


def is_refused(says: Path) -> bool:
    return any(word in says.read_text() for word in ("received AUTHENTICATION_FAILED", "EAP method not", "EAP_FAILURE"))
