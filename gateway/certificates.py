"""PURE. The certificates of IKEv2: an authority that customers' devices trust, and what the nodes show them.

RSA, because every client takes it (Windows, iOS, Android, NetworkManager). They have nothing to do with the authority
by which gateways and agents know each other (authority.py). A server's certificate lives as long as Apple lets it,
carries the domain and the addresses as names, and says that it is for a server and for IKE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from gateway.errors import InvalidValue
from gateway.model import NO_SECRET, Secret

BITS = 3072
LEAST_BITS = 2048  # of one that is brought along
AUTHORITY_LIFE, SERVER_LIFE = timedelta(days=3650), timedelta(days=824)  # Apple refuses 826 days
BACKDATED = timedelta(days=1)  # a customer's clock is slow
LONGEST_PEM = 32_768  # characters
LONGEST_NAME = 64  # characters; X.520
IKE_INTERMEDIATE = ObjectIdentifier("1.3.6.1.5.5.8.2.2")  # older Apple devices ask for it
FAILED = "Certificate failed"

# v1's names of the parts of a subject, in the order in which they are written.
PARTS: Mapping[str, ObjectIdentifier] = {
    "country_name": NameOID.COUNTRY_NAME,
    "state_or_province_name": NameOID.STATE_OR_PROVINCE_NAME,
    "locality": NameOID.LOCALITY_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
    "organizational_unit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "common_name": NameOID.COMMON_NAME,
}
Subject = Mapping[str, str]  # by the names of PARTS; "" = it has none


@dataclass(frozen=True, slots=True)
class Certified:
    """Both PEM; empty: there is none."""

    certificate: str = ""
    key: Secret = NO_SECRET

    def __bool__(self) -> bool:
        return bool(self.certificate)

    @property
    def der(self) -> bytes:
        return x509.load_pem_x509_certificate(self.certificate.encode()).public_bytes(Encoding.DER)

    @property
    def ends(self) -> datetime:
        return x509.load_pem_x509_certificate(self.certificate.encode()).not_valid_after_utc


NOTHING = Certified()


def new_authority(subject: Subject, now: datetime) -> Certified:
    """Takes half a second."""
    key, name = rsa.generate_private_key(65537, BITS), named(subject)
    draft = (
        _draft(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _signed(draft, key, key)


def new_server(
    authority: Certified, subject: Subject, domain: str, ip: IPv4Address, ipv6: IPv6Address | None, now: datetime
) -> Certified:
    """`domain`: what clients call it; a name or an address. Takes half a second."""
    signer = load_pem_private_key(authority.key.reveal().encode(), None)
    assert isinstance(signer, rsa.RSAPrivateKey), "what is kept has been checked"
    own, key = x509.load_pem_x509_certificate(authority.certificate.encode()), rsa.generate_private_key(65537, BITS)
    names: dict[x509.GeneralName, None] = {_general(domain): None, x509.IPAddress(ip): None}
    names |= {x509.IPAddress(ipv6): None} if ipv6 else {}
    life = min(SERVER_LIFE, own.not_valid_after_utc - now)
    draft = (
        _draft(named(subject), own.subject, key.public_key(), now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, IKE_INTERMEDIATE]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return _signed(draft, key, signer)


def brought_authority(certificate: str, key: str, now: datetime) -> Certified:
    """A CA that somebody has already. Raises InvalidValue, in v1's words."""
    try:
        found = x509.load_pem_x509_certificates(certificate.encode()[:LONGEST_PEM])
    except ValueError:
        raise InvalidValue("Certificate not found", "ca_cert") from None
    try:
        opened = load_pem_private_key(key.encode()[:LONGEST_PEM], None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidValue(f"{FAILED} (ca_key must be a private key in PEM, without a password)", "ca_key") from None
    if not isinstance(opened, rsa.RSAPrivateKey) or opened.key_size < LEAST_BITS:
        raise InvalidValue(f"{FAILED} (only RSA with {LEAST_BITS} bits or more)", "ca_key")
    own = found[0]
    if own.public_key() != opened.public_key():
        raise InvalidValue(f"{FAILED} (the key is not the certificate's)", "ca_key")
    _check_authority(own, now)
    return Certified(own.public_bytes(Encoding.PEM).decode(), Secret(_pem(opened)))


def _check_authority(own: x509.Certificate, now: datetime) -> None:
    try:
        is_authority = own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_authority = False
    if not is_authority:
        raise InvalidValue(f"{FAILED} (it is not a certificate authority's)", "ca_cert")
    try:
        own.verify_directly_issued_by(own)
    except (ValueError, TypeError, InvalidSignature):
        raise InvalidValue(f"{FAILED} (only a root, which has signed itself)", "ca_cert") from None
    if not own.not_valid_before_utc <= now < own.not_valid_after_utc:
        raise InvalidValue(f"{FAILED} (it is not valid now)", "ca_cert")


def subject_of(certificate: str) -> dict[str, str]:
    """By v1's names."""
    subject = x509.load_pem_x509_certificate(certificate.encode()).subject
    found = {part: subject.get_attributes_for_oid(oid) for part, oid in PARTS.items()}
    return {part: str(values[0].value) if values else "" for part, values in found.items()}


def named(subject: Subject) -> x509.Name:
    """Raises InvalidValue."""
    attributes = []
    for part, oid in PARTS.items():
        if text := subject.get(part, ""):
            try:
                attributes.append(x509.NameAttribute(oid, text))
            except ValueError:
                what = "two letters" if part == "country_name" else f"at most {LONGEST_NAME} characters"
                raise InvalidValue(f"Wrong {part} (only {what})", part) from None
    return x509.Name(attributes)


def _general(domain: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(domain))
    except ValueError:
        return x509.DNSName(domain)


def _draft(
    subject: x509.Name, issuer: x509.Name, public: rsa.RSAPublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    own = not signs_certificates
    return x509.KeyUsage(own, False, own, False, False, signs_certificates, signs_certificates, False, False)


def _signed(draft: x509.CertificateBuilder, key: rsa.RSAPrivateKey, signer: rsa.RSAPrivateKey) -> Certified:
    made = draft.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    return Certified(made, Secret(_pem(key)))


def _pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
