"""How secrets lie in the database. Private keys and passwords: AES-256-GCM, each value with a nonce of its own. Access
keys and one-time links: a digest (HMAC-SHA256) with a key derived from the same one.

A sealed value is bound to its place (table, column, row) and a digest to what it opens, so nobody who can write to the
database can swap two of them, or add one of his own. Never reads the key file (the caller does), never logs a value.
Called by the files of this folder only.
"""

from __future__ import annotations

import hmac
import logging
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.errors import ConfigError, SealBroken

KEY_BYTES = 32
NONCE_BYTES = 12  # GCM's own size; random nonces are safe far beyond the 2^32 values of one key
VERSION = b"\x01"  # AES-256-GCM, nonce, ciphertext with tag
MOST_TOLD = 1000  # broken places that are remembered as logged

log = logging.getLogger(__name__)


class Seal:
    """Seals and opens with one key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError([f"key_file: the key must be {KEY_BYTES} bytes, it is {len(key)}"])
        self._cipher = AESGCM(key)
        self._digest_key = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"wirelane digests").derive(key)
        self._told: set[str] = set()

    def seal(self, text: str, place: str) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return VERSION + nonce + self._cipher.encrypt(nonce, text.encode(), place.encode())

    def open(self, value: bytes, place: str) -> str:
        if value[:1] != VERSION:
            raise SealBroken(place)
        try:
            return self._cipher.decrypt(value[1 : 1 + NONCE_BYTES], value[1 + NONCE_BYTES :], place.encode()).decode()
        except (InvalidTag, ValueError, TypeError):
            raise SealBroken(place) from None

    def opened(self, value: bytes, place: str) -> str | None:
        """As `open`, for callers that go on without it: None, and a line in the log, once for each place."""
        try:
            return self.open(value, place)
        except SealBroken as error:
            if place not in self._told and len(self._told) < MOST_TOLD:
                self._told.add(place)
                log.error("event=unreadable place=%s reason=%r", place, str(error))
            return None

    def digest(self, purpose: str, *parts: bytes) -> bytes:
        """Nobody can make one who lacks the key, whatever he can write."""
        text = b"".join(len(part).to_bytes(4, "big") + part for part in (purpose.encode(), *parts))
        return hmac.digest(self._digest_key, text, "sha256")
