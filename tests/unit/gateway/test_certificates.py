"""The certificates of IKEv2, as clients look at them; and an authority that somebody brings along."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from gateway import certificates
from gateway.certificates import Certified, brought_authority, new_authority, new_server, subject_of
from gateway.errors import InvalidValue

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
NAMES = {"common_name": "Example CA", "organization": "Example Ltd", "country_name": "PL", "locality": ""}
IP, IPV6 = IPv4Address("198.51.100.7"), IPv6Address("2001:db8::7")


@pytest.fixture(scope="module")
def authority() -> Certified:
    return new_authority(NAMES, NOW)


def loaded(one: Certified) -> x509.Certificate:
    return x509.load_pem_x509_certificate(one.certificate.encode())


def brought(**changes: object) -> tuple[str, str]:
    """A root by other hands."""
    wanted = {"key": rsa.generate_private_key(65537, 2048), "ca": True, "start": NOW - timedelta(days=1)} | changes
    key, name = wanted["key"], x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Old CA")])
    signer = wanted.get("signer", key)
    draft = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())  # type: ignore[attr-defined]
        .serial_number(1)
        .not_valid_before(wanted["start"])  # type: ignore[arg-type]
        .not_valid_after(NOW + timedelta(days=wanted.get("days", 90)))  # type: ignore[arg-type]
        .add_extension(x509.BasicConstraints(ca=bool(wanted["ca"]), path_length=None), critical=True)
    )
    made = draft.sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())  # type: ignore[attr-defined]
    return made.public_bytes(Encoding.PEM).decode(), pem.decode()


def test_a_client_that_trusts_the_authority_believes_the_server(authority: Certified) -> None:
    made = new_server(authority, {"common_name": "vpn", "organization": "x"}, "vpn.example.com", IP, IPV6, NOW)
    own = loaded(made)
    trust = PolicyBuilder().store(Store([loaded(authority)])).time(NOW + timedelta(days=800))
    for name in (x509.DNSName("vpn.example.com"), x509.IPAddress(IP), x509.IPAddress(IPV6)):
        assert trust.build_server_verifier(name).verify(own, []) == [own, loaded(authority)]
    uses = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {ExtendedKeyUsageOID.SERVER_AUTH, certificates.IKE_INTERMEDIATE} == set(uses)
    assert own.not_valid_after_utc - own.not_valid_before_utc <= timedelta(days=825), "Apple's limit"
    key = own.public_key()
    assert isinstance(key, rsa.RSAPublicKey) and key.key_size >= 3072
    assert own.not_valid_before_utc < NOW, "a slow clock believes it too"


def test_an_address_may_be_what_clients_call_it(authority: Certified) -> None:
    own = loaded(new_server(authority, {}, str(IP), IP, None, NOW))
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.IPAddress(IP)]


def test_a_server_does_not_outlive_its_authority() -> None:
    old = brought_authority(*brought(), NOW)
    assert loaded(new_server(old, {}, "a.example", IP, None, NOW)).not_valid_after_utc == old.ends


def test_a_subject_is_told_back_as_it_was_given(authority: Certified) -> None:
    empty = {"state_or_province_name": "", "organizational_unit": ""}
    assert subject_of(authority.certificate) == NAMES | empty


@pytest.mark.parametrize(("part", "text"), [("country_name", "Poland"), ("common_name", "x" * 65)])
def test_a_part_of_a_subject_that_cannot_be_is_named(part: str, text: str) -> None:
    with pytest.raises(InvalidValue, match=part):
        new_authority({**NAMES, part: text}, NOW)


def test_an_authority_that_is_brought_along_signs() -> None:
    certificate, key = brought()
    taken = brought_authority(f"Bag Attributes\n{certificate}", key, NOW)
    assert taken.certificate == certificate
    made = new_server(taken, {}, "vpn.example.com", IP, None, NOW)
    loaded(made).verify_directly_issued_by(loaded(taken))


@pytest.mark.parametrize(
    ("pair", "error"),
    [
        (lambda: ("no certificate", brought()[1]), "Certificate not found"),
        (lambda: (brought()[0][:200], brought()[1]), "Certificate not found"),
        (lambda: ("x" * 100_000, "y"), "Certificate not found"),
        (lambda: (brought()[0], "no key"), "Certificate failed"),
        (lambda: (brought()[0], "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----"), "failed"),
        (lambda: (brought()[0], brought()[1]), "the key is not the certificate's"),
        (lambda: brought(key=ec.generate_private_key(ec.SECP256R1())), "only RSA"),
        (lambda: brought(key=rsa.generate_private_key(65537, 1024)), "only RSA"),
        (lambda: brought(ca=False), "not a certificate authority's"),
        (lambda: brought(signer=rsa.generate_private_key(65537, 2048)), "only a root"),
        (lambda: brought(start=NOW + timedelta(days=1)), "not valid now"),
        (lambda: brought(start=NOW - timedelta(days=9), days=-1), "not valid now"),
    ],
)
def test_what_is_no_authority_is_refused(pair: Callable[[], tuple[str, str]], error: str) -> None:
    with pytest.raises(InvalidValue, match=error):
        brought_authority(*pair(), NOW)


def test_a_key_with_a_password_is_refused_and_never_told() -> None:
    certificate, _ = brought()
    with pytest.raises(InvalidValue, match="without a password") as error:
        brought_authority(
            certificate, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----", NOW
        )
    assert "MIIB" not in str(error.value)
