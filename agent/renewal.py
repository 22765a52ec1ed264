"""A new certificate for a running agent: a gateway asks for a key, signs its public half and brings the certificate.

The private half never leaves the host, and lives in memory until its certificate is there. What is brought is checked
whole before it takes the place of what stands: gRPC would say nothing of one that does not fit. It must be for this
node's own name, and of the authorities that come with it at least one must be trusted here already: whoever is not
trusted cannot make himself so. The file is followed by the door (rpc/fleet.py). Called by rpc/.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from agent.errors import IdentityError
from agent.identity import Identity, identity_of, is_issued, new_key, pin_of, public_key_in, public_key_of, save
from agent.model import Secret

MOST_KEYS = 8  # that wait for a certificate: one for each gateway that asks at the same time


@dataclass(frozen=True, slots=True)
class Standing:
    """What gateways have to know of an identity. `authority`: the pin of who signed it, "" = nobody it trusts."""

    authority: str
    authorities: tuple[str, ...]  # pins


class Renewal:
    """`directory`: of the identity."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._identity: Identity | None = None
        self._keys: OrderedDict[bytes, Secret] = OrderedDict()  # by public key
        self.standing: Standing | None = None

    def in_force(self, identity: Identity) -> None:
        """This one is, from now on."""
        trusted = x509.load_pem_x509_certificates(identity.authorities)
        own = x509.load_pem_x509_certificate(identity.certificate)
        signer = next((pin_of(one) for one in trusted if is_issued(own, one)), "")
        self._identity = identity
        self.standing = Standing(signer, tuple(map(pin_of, trusted)))

    def new_key(self) -> bytes:
        """Its public half (SubjectPublicKeyInfo, DER). Raises IdentityError."""
        if self._identity is None:
            raise IdentityError("this node is not enrolled, or listens to no other host: it has nothing to renew")
        key = new_key()
        public = public_key_of(key)
        self._keys[public] = key
        if len(self._keys) > MOST_KEYS:
            self._keys.popitem(last=False)
        return public

    def take(self, certificate: bytes, authorities: bytes, now: datetime) -> None:
        """Both PEM. Blocks for the disk. Raises IdentityError; then what stood stands."""
        own = self._identity
        key = self._keys.get(public := public_key_in(certificate))
        if own is None or key is None:
            raise IdentityError("this certificate is for a key that was not asked for, or not since the agent started")
        new = identity_of(certificate, key, authorities)
        if new.name != own.name:
            raise IdentityError("this certificate is for another name than this node's")
        if not _pins(own.authorities) & _pins(authorities):
            raise IdentityError("this node trusts none of the authorities that came with its certificate")
        save(self._directory, new, now)
        del self._keys[public]


def _pins(authorities: bytes) -> set[str]:
    return set(map(pin_of, x509.load_pem_x509_certificates(authorities)))
