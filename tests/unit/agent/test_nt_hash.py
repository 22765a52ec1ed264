from __future__ import annotations

import pytest

from agent.kernel.ikev2.nt_hash import md4, nt_hash

DIGITS = b"1234567890" * 8


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        # RFC 1320, A.5
        (b"", "31d6cfe0d16ae931b73c59d7e0c089c0"),
        (b"a", "bde52cb31de33e46245e05fbdbd6fb24"),
        (b"abc", "a448017aaf21d8525fc10ae87aa6729d"),
        (b"message digest", "d9130a8164549fe818874806e1c7014b"),
        (b"abcdefghijklmnopqrstuvwxyz", "d79e1c308aa5bbcdeea8ed63df412da9"),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", "043f8582f241db351ce627e153e7f0e4"),
        (DIGITS, "e33b4ddc9c38f2199c3e7b164fcc0536"),
    ],
)
def test_it_is_md4(data: bytes, digest: str) -> None:
    assert md4(data).hex() == digest


def test_a_password_is_hashed_as_mschapv2_does() -> None:
    assert nt_hash("clientPass") == "44ebba8d5312b8d611474411f56989ae"  # RFC 2759, 9.2
