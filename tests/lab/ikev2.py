"""An IKEv2 client in a lab host, made from an account's profile and its password, and nothing else.

`charon-cmd` of strongSwan, with its own settings and ESP in userspace, so it works on every kernel. What the profile
says is what a phone would do. Called by demo.py and the tests; knows nothing of how agent and gateway are made.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.lab import Lab

PLUGINS = (
    "random nonce openssl x509 revocation constraints pubkey pkcs1 pkcs8 pem sha1 sha2 hmac md5 kdf kernel-libipsec "
    "kernel-netlink socket-default eap-identity eap-mschapv2"
)
# Its standard output comes in blocks, long after what it tells of.
SETTINGS = """\
charon-cmd {{
  load = {plugins}
  filelog {{
    says {{
      path = {says}
      flush_line = yes
      default = 1
    }}
  }}
}}
"""
LOGIN_SECONDS = 10.0
END_SECONDS = 5.0


class Ikev2Client:
    """`with Ikev2Client(lab, "c1", profile, password): ...`: it is in. Raises LabError where it does not get in."""

    def __init__(self, lab: Lab, host: str, profile: str, password: str) -> None:
        self._lab = lab
        self._host = host
        self._profile = json.loads(profile)
        self._password = password
        self._folder = lab.state / "hosts" / host / "ikev2"

    def __enter__(self) -> Ikev2Client:
        remote, local = self._profile["remote"], self._profile["local"]
        self._folder.mkdir(parents=True, exist_ok=True)
        authority, settings = self._folder / "ca.der", self._folder / "strongswan.conf"
        authority.write_bytes(base64.b64decode(remote["cert"], validate=True))
        settings.write_text(SETTINGS.format(plugins=PLUGINS, says=self._says))
        self._says.write_text("")
        words = ["charon-cmd", "--host", remote["addr"], "--remote-identity", remote["id"], "--profile", "ikev2-eap"]
        words += ["--identity", local["eap_id"], "--cert", str(authority)]
        self._process = subprocess.Popen(
            self._lab.command(self._host, *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "STRONGSWAN_CONF": str(settings)},
            text=True,
        )
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{self._password}\n")
            self._process.stdin.flush()
            self._await_session()
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def _says(self) -> Path:
        return self._folder / "says"

    def _await_session(self) -> None:
        give_up = time.monotonic() + LOGIN_SECONDS
        while "established with SPIs" not in (said := self._says.read_text()):
            refused = "AUTHENTICATION_FAILED" in said or "EAP_FAILURE" in said or "NO_PROPOSAL_CHOSEN" in said
            if refused or self._process.poll() is not None:
                raise LabError(f"{self._host}: IKEv2 is refused: {said.strip().splitlines()[-1]}")
            if time.monotonic() > give_up:
                raise LabError(f"{self._host}: no IKEv2 within {LOGIN_SECONDS:g} s: {said[-2000:]}")
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def turn_on(lab: Lab, node: str = "n1") -> None:
    """By the API, as an operator does."""
    address = str(lab.host(node).address.ip)
    lab.rest.put("ikev2/generate_ca_rsa", ca_common_name="Lab CA", ca_organization="Lab")
    lab.rest.put(
        "ikev2/generate_server_rsa",
        server_domain="vpn.example.com",
        server_ip=address,
        server_common_name="vpn.example.com",
        server_organization="Lab",
    )
    lab.rest.put("ikev2", enabled="1")
