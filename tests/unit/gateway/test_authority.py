"""What the authority signs, for whom, and what it never signs."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway import authority
from gateway.authority import Authority, checked_public_key, gateway_certificate, new_authority, node_certificate
from gateway.errors import InvalidValue

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
NAME = "0123456789abcdef.node.wirelane"


@pytest.fixture(scope="module")
def ours() -> Authority:
    return new_authority(NOW)


def spki(key: object) -> bytes:
    public: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return public


def node_key() -> bytes:
    return spki(ec.generate_private_key(ec.SECP256R1()))


def verified(pem: bytes, by: Authority, name: str = NAME, at: datetime = NOW) -> None:
    store = verification.Store([x509.load_pem_x509_certificate(by.certificate)])
    verifier = verification.PolicyBuilder().store(store).time(at).build_server_verifier(x509.DNSName(name))
    verifier.verify(x509.load_pem_x509_certificate(pem), [])


def purposes(pem: bytes) -> list[x509.ObjectIdentifier]:
    return list(x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def names(pem: bytes) -> list[str]:
    found = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.DNSName)


def test_a_node_may_serve_under_one_name_and_do_nothing_else(ours: Authority) -> None:
    key = node_key()
    pem = node_certificate(ours, key, "fra1", NAME, NOW)
    assert (names(pem), purposes(pem)) == ([NAME], [ExtendedKeyUsageOID.SERVER_AUTH])
    assert (
        x509.load_pem_x509_certificate(pem).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        == key
    )
    verified(pem, ours)


@pytest.mark.parametrize("days", [-6, -2, 0, 2, 60, 89])
def test_a_clock_that_is_some_days_off_breaks_no_certificate(ours: Authority, days: int) -> None:
    verified(node_certificate(ours, node_key(), "fra1", NAME, NOW), ours, at=NOW + timedelta(days=days))
    own = x509.load_pem_x509_certificate(gateway_certificate(ours, NOW)[1])
    assert own.not_valid_before_utc <= NOW - timedelta(days=2)
    # It is a day old when it is renewed.
    assert own.not_valid_after_utc >= NOW + timedelta(days=3)


@pytest.mark.parametrize("days", [-8, 91])
def test_a_certificate_ends(ours: Authority, days: int) -> None:
    pem = node_certificate(ours, node_key(), "fra1", NAME, NOW)
    with pytest.raises(verification.VerificationError):
        verified(pem, ours, at=NOW + timedelta(days=days))


def test_another_authority_or_name_does_not_hold(ours: Authority) -> None:
    pem = node_certificate(ours, node_key(), "fra1", NAME, NOW)
    with pytest.raises(verification.VerificationError):
        verified(pem, new_authority(NOW))
    with pytest.raises(verification.VerificationError):
        verified(pem, ours, name="fedcba9876543210.node.wirelane")


def test_a_gateway_may_call_and_do_nothing_else(ours: Authority) -> None:
    key, pem = gateway_certificate(ours, NOW)
    (name,) = names(pem)
    assert name.endswith(f".{authority.GATEWAYS}")
    assert purposes(pem) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    opened = load_pem_private_key(key.reveal().encode(), None)
    assert spki(opened) == x509.load_pem_x509_certificate(pem).public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert gateway_certificate(ours, NOW)[0].reveal() != key.reveal()
    with pytest.raises(verification.VerificationError):
        verified(pem, ours, name=name)


def test_nobody_below_can_sign_and_nothing_outside_is_signed(ours: Authority) -> None:
    own = x509.load_pem_x509_certificate(ours.certificate)
    basic = own.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    leaf = x509.load_pem_x509_certificate(node_certificate(ours, node_key(), "fra1", NAME, NOW))
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(verification.VerificationError, match="permitted"):
        verified(node_certificate(ours, node_key(), "x", "vpn.example.com", NOW), ours, name="vpn.example.com")


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["rsa", "ed25519", "p384", "secp256k1"],
)
def test_keys_other_than_p256_are_refused(ours: Authority, key: object) -> None:
    with pytest.raises(InvalidValue, match="must be ECDSA P-256"):
        checked_public_key(spki(key))
    with pytest.raises(InvalidValue, match="must be ECDSA P-256"):
        node_certificate(ours, spki(key), "fra1", NAME, NOW)


@pytest.mark.parametrize("der", [b"", b"\x30", b"x" * 91, node_key()[:-1]])
def test_a_key_that_is_none_is_refused(der: bytes) -> None:
    with pytest.raises(InvalidValue, match="cannot be read"):
        checked_public_key(der)


def test_the_pin_is_of_the_key_and_not_of_the_certificate(ours: Authority) -> None:
    assert len(ours.pin) == 64
    assert ours.pin != new_authority(NOW).pin
    own = x509.load_pem_x509_certificate(ours.certificate)
    other = dataclasses.replace(ours, certificate=new_authority(NOW).certificate)
    assert (authority.pin_of(own.public_key()), other.pin == ours.pin) == (ours.pin, False)


def test_what_it_signed_can_be_checked_with_its_certificate(ours: Authority) -> None:
    public = x509.load_pem_x509_certificate(ours.certificate).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(ours.sign(b"these words"), b"these words", ec.ECDSA(hashes.SHA256()))


def test_a_key_is_never_shown(ours: Authority) -> None:
    assert "PRIVATE" not in repr(ours) + repr(gateway_certificate(ours, NOW)[0])


def test_names_say_nothing_and_are_new_each_time() -> None:
    first, second = authority.new_node_name(), authority.new_node_name()
    assert first != second
    assert first.endswith(".node.wirelane") and len(first.partition(".")[0]) == 16
