"""PURE. WireGuard keys: X25519 pairs, made as `wg genkey` does, derived as `wg pubkey` does, checked; preshared ones.

Never stores or prints one. Called by creation, servers and fields.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from gateway.errors import InvalidValue
from gateway.model import GENERATE, Secret

KEY_BYTES = 32
WRONG_KEYS = "Keys are invalid"
# Somebody's, to try public keys with; it keeps no secret.
_PROBE = X25519PrivateKey.from_private_bytes(bytes(range(KEY_BYTES)))


@dataclass(frozen=True, slots=True)
class KeyPair:
    """`private` is empty where only the client has it."""

    private: Secret
    public: str


def new_pair() -> KeyPair:
    raw = bytearray(secrets.token_bytes(KEY_BYTES))
    raw[0] &= 248  # the clamping of RFC 7748; `wg genkey` prints clamped keys
    raw[31] = (raw[31] & 127) | 64
    return _derived(bytes(raw))


def checked_pair(private: Secret | None, public: str | None) -> KeyPair:
    """Private only: the public key is derived. Public only: it stands alone. Both: they must match. None: a new pair.

    An unclamped private key is as good as a clamped one (WireGuard clamps it) and is given back as it came.
    """
    if not private:
        return KeyPair(Secret(), _checked_public(public)) if public else new_pair()
    pair = _derived(decoded(private.reveal(), "private_key"))
    if public and spelled(decoded(public, "public_key")) != pair.public:
        raise InvalidValue(WRONG_KEYS, "public_key")
    return pair


def made_preshared(asked: Secret) -> Secret:
    """The key itself, or a new one where GENERATE was asked for; as `wg genpsk` makes it."""
    return Secret(spelled(secrets.token_bytes(KEY_BYTES))) if asked == GENERATE else asked


def _checked_public(text: str) -> str:
    """A point of low order (RFC 7748, section 6.1) gives the same all-zero secret to everybody: nobody can connect."""
    raw = decoded(text, "public_key")
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(raw))
    except ValueError:
        raise InvalidValue(WRONG_KEYS, "public_key") from None
    return spelled(raw)


def _derived(raw: bytes) -> KeyPair:
    public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    return KeyPair(Secret(spelled(raw)), spelled(public))


def decoded(text: str, field: str) -> bytes:
    """Raises InvalidValue of the field."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # All zeros is WireGuard's own word for "no key".
    if len(raw) != KEY_BYTES or not any(raw):
        raise InvalidValue(WRONG_KEYS, field)
    return raw


def spelled(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
