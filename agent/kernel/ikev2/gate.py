"""The gate: charon's one connection for all accounts. While it is not loaded nobody gets in.

It is the last thing that a pass opens and the first that it closes, so nobody is in before what shapes and counts him.
charon keeps no file: what it was told is gone when it ends. Its name holds a digest of what it was made from, which is
how `read` knows one that is right; sessions go on when it is loaded anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.errors import KernelError
from agent.kernel.ikev2.charon import READ_SECONDS, Charon
from agent.kernel.ikev2.files import Paths
from agent.kernel.ikev2.leftovers import XFRM_ID
from agent.kernel.ikev2.responder import Esp
from agent.model import IKEV2_DEVICE, Ikev2
from agent.objects import ANYWHERE, ANYWHERE_IPV6, Diff, Gate, Scope

PREFIX, IPV6 = "wirelane-", "-ipv6"  # what the connection's name begins with, and ends with where it offers both
NOWHERE = Scope(frozenset(), "")
IKE_PROPOSALS = (
    "aes256gcm16-aes128gcm16-prfsha384-prfsha256-curve25519-ecp384-ecp256-modp4096-modp3072-modp2048",
    "aes256-aes128-sha384-sha256-sha1-curve25519-ecp384-ecp256-modp4096-modp3072-modp2048",
)
ESP_PROPOSALS = ("aes256gcm16-aes128gcm16", "aes256-aes128-sha384-sha256-sha1")


class Gates:
    """`Part[str, Gate]`."""

    def __init__(self, folder: Path, esp: Esp) -> None:
        control = Paths(folder).control
        self._charon, self._reading = Charon(control), Charon(control, READ_SECONDS)
        self._esp = esp

    def read(self, scope: Scope) -> dict[str, Gate]:
        """{} also where no charon answers: then there is no way in either."""
        try:
            names = [name for name in self._reading.connections() if name.startswith(PREFIX)]
        except KernelError:
            return {}
        said = ",".join(names).removeprefix(PREFIX)
        gate = Gate(IKEV2_DEVICE, said.removesuffix(IPV6), ipv6=said.endswith(IPV6))
        return {IKEV2_DEVICE: gate} if names else {}

    def apply(self, diff: Diff[str, Gate]) -> Mapping[str, KernelError]:
        try:
            for gate in (*diff.add.values(), *diff.change.values()):
                self._open(gate)
            if diff.remove and self.read(NOWHERE):
                self._close(keep="")
        except KernelError as error:
            return dict.fromkeys((*diff.remove, *diff.change, *diff.add), error)
        return {}

    def _open(self, gate: Gate) -> None:
        assert gate.credentials is not None
        said, name = gate.credentials, PREFIX + gate.digest + (IPV6 if gate.ipv6 else "")
        with self._charon.session() as session:
            session.clear_creds()
            session.load_cert({"type": "X509", "flag": "CA", "data": said.authority})
            session.load_key({"type": "rsa", "data": said.private_key.reveal()})
            session.load_conn({name: self._connection(said, gate.ipv6)})
        self._close(keep=name)

    def _close(self, keep: str) -> None:
        with self._charon.session() as session:
            for name in self._charon.connections():
                if name.startswith(PREFIX) and name != keep:
                    session.unload_conn({"name": name})

    def _connection(self, said: Ikev2, ipv6: bool) -> dict[str, Any]:
        in_kernel = self._esp == "kernel"
        own = {"if_id_in": str(XFRM_ID), "if_id_out": str(XFRM_ID)} if in_kernel else {}
        child = {
            # A client's own side is what addresses it is given, each as one: no other source comes in by its session.
            "local_ts": [ANYWHERE, *([ANYWHERE_IPV6] if ipv6 else [])],
            "esp_proposals": list(ESP_PROPOSALS),
            "dpd_action": "clear",
            **own,
        }
        return {
            "version": "2",
            "proposals": list(IKE_PROPOSALS),
            "fragmentation": "yes",
            "unique": "replace",
            "send_cert": "always",
            "dpd_delay": "60s",
            "encap": "no" if in_kernel else "yes",
            "pools": ["radius"],
            "local": {"auth": "pubkey", "certs": [said.certificate], "id": said.identity},
            # Whoever logs in is known by the password that he has; what he calls himself before is not believed.
            "remote": {"auth": "eap-radius", "id": "%any", "eap_id": "%any"},
            "children": {"all": child},
        }
