"""PURE. The authority: it signs the certificates by which gateways and the agents on other hosts know each other.

Everything is ECDSA P-256: gRPC's TLS knows no Ed25519, and with an RSA certificate TLS 1.2 could not be kept out. A
node's certificate serves and nothing else, a gateway's calls and nothing else: the key of a stolen node drives no other
node. Only names below `wirelane` are signed, and nobody below the authority can sign at all. Dates begin a week ago, so
that a clock that steps back by some days breaks nothing. Never stores anything and never opens a connection.
Called by enrolment, credentials and the store.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.errors import InvalidValue
from gateway.model import Secret

NODES, GATEWAYS = "node.wirelane", "gateway.wirelane"  # below these are the names of both
BACKDATED = timedelta(days=7)
AUTHORITY_LIFE = timedelta(days=3650)
NODE_LIFE = timedelta(days=90)
# Renewed each day (gateway/credentials.py); the rest is for agents whose clocks are ahead.
GATEWAY_LIFE = timedelta(days=4)

_SIGNS = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
_SIGNS_CERTIFICATES = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


@dataclass(frozen=True, slots=True)
class Authority:
    """Both are PEM."""

    certificate: bytes
    key: Secret

    @property
    def pin(self) -> str:
        """SHA-256 of its public key (DER), in hex: what a join token names it by. Another certificate for the same key
        has the same."""
        return pin_of(x509.load_pem_x509_certificate(self.certificate).public_key())

    def sign(self, what: bytes) -> bytes:
        """ECDSA with SHA-256, DER."""
        return self._opened().sign(what, ec.ECDSA(hashes.SHA256()))

    def _opened(self) -> ec.EllipticCurvePrivateKey:
        key = load_pem_private_key(self.key.reveal().encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def issue(self, draft: x509.CertificateBuilder) -> bytes:
        """`draft`: all that is not the authority's own to say. PEM."""
        key, own = self._opened(), x509.load_pem_x509_certificate(self.certificate)
        whose = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        draft = draft.issuer_name(own.subject).add_extension(whose, False)
        return draft.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this gateway shows the agents, and whose certificates it takes. PEM, also several in a row."""

    certificate: bytes
    key: Secret
    authorities: bytes


def new_authority(now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    below = x509.NameConstraints([x509.DNSName("wirelane")], None)
    certificate = (
        _draft(key.public_key(), "wirelane", now, AUTHORITY_LIFE)
        .issuer_name(_name("wirelane"))
        .add_extension(x509.BasicConstraints(True, 0), True)
        .add_extension(_SIGNS_CERTIFICATES, True)
        .add_extension(below, True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate.public_bytes(Encoding.PEM), _spelled(key))


def new_node_name() -> str:
    """A name of its own for each enrolment. It says nothing: it can be read in the first packet of a connection."""
    return f"{secrets.token_hex(8)}.{NODES}"


def node_certificate(authority: Authority, public_key: bytes, node: str, name: str, now: datetime) -> bytes:
    """PEM. `public_key`: as from `checked_public_key`. `node` is for people; peers go by `name` alone."""
    draft = _draft(_p256(public_key), node, now, NODE_LIFE)
    return authority.issue(_leaf(draft, name, ExtendedKeyUsageOID.SERVER_AUTH))


def gateway_certificate(authority: Authority, now: datetime, series: int = 1) -> tuple[Secret, bytes]:
    """A new key and its certificate, both PEM. The key lives in memory and nowhere else.

    `series` stands in its name: an agent that has seen a later one refuses it.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    draft = _draft(key.public_key(), "gateway", now, GATEWAY_LIFE)
    name = f"{secrets.token_hex(8)}.{series}.{GATEWAYS}"
    return _spelled(key), authority.issue(_leaf(draft, name, ExtendedKeyUsageOID.CLIENT_AUTH))


def checked_public_key(der: bytes) -> bytes:
    """As it came (SubjectPublicKeyInfo, DER). Raises InvalidValue."""
    _p256(der)
    return der


def pin_of(public_key: object) -> str:
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def _p256(der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidValue("The key of the request cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidValue("The key of the request must be ECDSA P-256: nothing else is signed")
    return key


def _draft(key: ec.EllipticCurvePublicKey, subject: str, now: datetime, life: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def _leaf(draft: x509.CertificateBuilder, name: str, purpose: x509.ObjectIdentifier) -> x509.CertificateBuilder:
    """Always one name and one purpose: without a name gRPC goes by the subject, without a purpose all are right."""
    return (
        draft.add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(_SIGNS, True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _spelled(key: ec.EllipticCurvePrivateKey) -> Secret:
    return Secret(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
