"""Who may call over TCP, as it is asked at every call: the handshake was long ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agent.rpc.callers import refusal, series_of
from gateway.authority import GATEWAY_LIFE, gateway_certificate
from gateway.model import Secret
from tests.fakes.certificates import an_authority, an_identity

OURS, OTHERS = an_authority(), an_authority()
NOW = datetime.now(UTC)


def shown(certificate: bytes, version: bytes = b"TLSv1.3") -> dict[str, list[bytes]]:
    return {"x509_pem_cert": [certificate], "ssl_tls_version": [version]}


def a_gateway(series: int = 1) -> bytes:
    made: tuple[Secret, bytes] = gateway_certificate(OURS, NOW, series)
    return made[1]


def test_a_gateway_of_an_authority_that_is_trusted_may_call() -> None:
    assert refusal(shown(a_gateway()), OURS.certificate, NOW) == ""
    assert refusal(shown(a_gateway()), OTHERS.certificate + OURS.certificate, NOW) == ""
    assert series_of(shown(a_gateway(7)), OURS.certificate) == 7


@pytest.mark.parametrize(
    ("auth", "authorities", "later", "reason"),
    [
        (shown(a_gateway(), b"TLSv1.2"), OURS.certificate, timedelta(), "TLS 1.3 only"),
        ({}, OURS.certificate, timedelta(), "TLS 1.3 only"),
        (shown(b""), OURS.certificate, timedelta(), "there was no certificate"),
        (shown(a_gateway()), OTHERS.certificate, timedelta(), "does not trust, or not any more"),
        (shown(an_identity(OURS).certificate), OURS.certificate, timedelta(), "is not a gateway's"),
        (shown(a_gateway()), OURS.certificate, GATEWAY_LIFE + timedelta(minutes=1), "your certificate ended at "),
        (shown(a_gateway()), OURS.certificate, timedelta(days=-8), "your certificate begins at "),
    ],
)
def test_everybody_else_is_told_why_not(
    auth: dict[str, list[bytes]], authorities: bytes, later: timedelta, reason: str
) -> None:
    assert reason in refusal(auth, authorities, NOW + later)
