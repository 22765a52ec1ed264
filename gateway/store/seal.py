"""How private keys and passwords lie in the database: AES-256-GCM, each value with a nonce of its own.

A sealed value is bound to its place (table, column, row), so nobody who can write to the database can swap two of
them. Never reads the key file (the caller does), never logs a value. Called by the files of this folder only.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.errors import ConfigError, SealBroken

KEY_BYTES = 32
NONCE_BYTES = 12  # GCM's own size; random nonces are safe far beyond the 2^32 values of one key
VERSION = b"\x01"  # AES-256-GCM, nonce, ciphertext with tag


class Seal:
    """Seals and opens with one key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError([f"key_file: the key must be {KEY_BYTES} bytes, it is {len(key)}"])
        self._cipher = AESGCM(key)

    def seal(self, text: str, place: str) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return VERSION + nonce + self._cipher.encrypt(nonce, text.encode(), place.encode())

    def open(self, value: bytes, place: str) -> str:
        if value[:1] != VERSION:
            raise SealBroken(place)
        try:
            return self._cipher.decrypt(value[1 : 1 + NONCE_BYTES], value[1 + NONCE_BYTES :], place.encode()).decode()
        except (InvalidTag, ValueError):
            raise SealBroken(place) from None
