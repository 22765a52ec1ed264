"""Who this agent is to gateways on other hosts: its key, its certificate, and the authorities that it trusts.

All of it is one file, `identity.pem`, so that a new identity takes the place of the old one whole or not at all: the
key, its certificate, then the authorities. Only root can read it. Nothing is saved that does not fit together; what has
expired meanwhile is still loaded, so that it can be said. Knows no gRPC and opens no connection.
Called by enrol.py and by the gRPC door.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from agent.errors import IdentityError
from agent.model import Secret

FILE = "identity.pem"
SERIES_FILE = "series"  # see agent/rpc/series.py
CURE = "`wirelane-agent enrol` with a new join token makes another one"


@dataclass(frozen=True, slots=True)
class Identity:
    """All are PEM; `authorities`: one or several, one after the other. Checked on birth: key and certificate fit."""

    node: str
    certificate: bytes
    key: Secret
    authorities: bytes

    def __post_init__(self) -> None:
        try:
            own, key = x509.load_pem_x509_certificate(self.certificate), self._key()
            x509.load_pem_x509_certificates(self.authorities)
            names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, x509.ExtensionNotFound) as error:
            raise IdentityError(f"the identity of this node cannot be read ({error}): {CURE}") from None
        if len(names.get_values_for_type(x509.DNSName)) != 1:
            raise IdentityError(f"the certificate of this node must have one name: {CURE}")
        if public_key_of(key) != own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
            raise IdentityError("the certificate of this node is for another key than its own")

    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = load_pem_private_key(self.key.reveal().encode(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("the key is not ECDSA P-256")
        return key

    @property
    def _own(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate)

    @property
    def name(self) -> str:
        """By which gateways know this node, and nobody else does."""
        names = self._own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(names.get_values_for_type(x509.DNSName)[0])

    @property
    def expires(self) -> datetime:
        return self._own.not_valid_after_utc

    def check(self, now: datetime) -> None:
        """Raises IdentityError: gateways would not accept it, or not at this time."""
        own = self._own
        if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
            raise IdentityError(
                f"the certificate of this node holds from {own.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M} by this host's clock"
            )
        store = Store(x509.load_pem_x509_certificates(self.authorities))
        try:
            verifier = PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(self.name))
            verifier.verify(own, [])
            purposes = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (VerificationError, x509.ExtensionNotFound) as error:
            raise IdentityError(f"the certificate of this node is not one of its authorities' ({error})") from None
        if list(purposes) != [ExtendedKeyUsageOID.SERVER_AUTH]:
            raise IdentityError("the certificate of this node is for more than serving")


def new_key() -> Secret:
    """PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Secret(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def public_key_of(key: ec.EllipticCurvePrivateKey | Secret) -> bytes:
    """SubjectPublicKeyInfo, DER: what is asked to be certified."""
    opened = load_pem_private_key(key.reveal().encode(), None) if isinstance(key, Secret) else key
    return opened.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def public_key_in(certificate: bytes) -> bytes:
    """The same, of a certificate (PEM). Raises IdentityError."""
    try:
        key = x509.load_pem_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise IdentityError("the certificate that came for this node cannot be read") from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pin_of(authority: x509.Certificate) -> str:
    """What it is known by: SHA-256 of its public key, in hex."""
    key = authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()


def is_issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def identity_of(certificate: bytes, key: Secret, authorities: bytes) -> Identity:
    """The node's name is what the certificate says. All PEM. Raises IdentityError."""
    try:
        subject = x509.load_pem_x509_certificate(certificate).subject
        node = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except (ValueError, IndexError):
        raise IdentityError(f"the certificate of this node cannot be read: {CURE}") from None
    return Identity(node, certificate, key, authorities)


def load(directory: Path) -> Identity | None:
    """None = this node was never enrolled. Raises IdentityError. Dates are not looked at: see `check`."""
    path = directory / FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {error.strerror}") from None
    try:
        own, *authorities = x509.load_pem_x509_certificates(text)
    except ValueError:
        raise IdentityError(f"{path} is damaged: {CURE}") from None
    key, mark, _ = text.partition(b"-----BEGIN CERTIFICATE-----")
    if not authorities or not mark:
        raise IdentityError(f"{path} is damaged: {CURE}")
    pem = [one.public_bytes(Encoding.PEM) for one in (own, *authorities)]
    return identity_of(pem[0], Secret(key.decode(errors="replace")), b"".join(pem[1:]))


def save(directory: Path, identity: Identity, now: datetime) -> None:
    """Whole or not at all, and durable. Raises IdentityError: it does not hold, or the disk does not take it."""
    identity.check(now)
    text = identity.key.reveal().encode() + identity.certificate + identity.authorities
    write_private(directory / FILE, text)


def write_private(path: Path, text: bytes) -> None:
    """A file that only root can read, in a folder that only root can enter. Raises IdentityError."""
    draft = path.with_name(f".{path.name}.new")
    try:
        for folder in (path.parent.parent, path.parent):  # the agent may never have run yet
            folder.mkdir(mode=0o700, exist_ok=True)
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise IdentityError(f"{path} cannot be written: {error.strerror}") from None
