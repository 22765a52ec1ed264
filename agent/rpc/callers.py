"""Door, gRPC: who may call over TCP. Asked at every call, because a connection outlives the certificate that opened it.

The handshake has checked the certificate once. Here it is looked at again with today's clock and today's authorities:
a gateway whose certificate has ended, or whose authority this node has dropped, is refused at its next call.
A stream that runs is not ended. Called by fleet.py; the unix socket needs none of this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.identity import is_issued
from agent.rpc.series import Series

TLS = b"TLSv1.3"


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a certificate stays as it is. `known`: one of our authorities has issued it."""

    since: datetime
    until: datetime
    is_gateway: bool
    known: bool
    series: int  # of a gateway's; 0 = its name has none


def refusal(auth: Mapping[str, Sequence[bytes]], authorities: bytes, now: datetime) -> str:
    """Why who shows this may not call; "" = he may. `auth`: gRPC's auth_context. `authorities`: PEM, those in force."""
    certificate, version = _one(auth, "x509_pem_cert"), _one(auth, "ssl_tls_version")
    if version != TLS:
        return "this node takes calls over TLS 1.3 only"
    if not certificate:
        return "this node takes calls from gateways only: there was no certificate"
    shown = _read(certificate, authorities)
    if not shown.known:
        return "your certificate is of an authority that this node does not trust, or not any more"
    if not shown.is_gateway:
        return "your certificate is not a gateway's"
    if now > shown.until:
        return f"your certificate ended at {shown.until:%Y-%m-%d %H:%M}, and here it is {now:%Y-%m-%d %H:%M} UTC"
    if now < shown.since:
        return f"your certificate begins at {shown.since:%Y-%m-%d %H:%M}, and here it is {now:%Y-%m-%d %H:%M} UTC"
    return ""


def series_of(auth: Mapping[str, Sequence[bytes]], authorities: bytes) -> int:
    """Of a certificate that nothing is wrong with."""
    return _read(_one(auth, "x509_pem_cert"), authorities).series


def _one(auth: Mapping[str, Sequence[bytes]], key: str) -> bytes:
    return next(iter(auth.get(key, ())), b"")


@lru_cache(maxsize=64)  # a few gateways, one certificate a day each; the look costs 0.2 ms, finding it nothing
def _read(certificate: bytes, authorities: bytes) -> Shown:
    own = x509.load_pem_x509_certificate(certificate)
    try:
        purposes = list(own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        purposes = []
    return Shown(
        since=own.not_valid_before_utc,
        until=own.not_valid_after_utc,
        is_gateway=purposes == [ExtendedKeyUsageOID.CLIENT_AUTH],
        series=_series(own),
        known=any(is_issued(own, one) for one in x509.load_pem_x509_certificates(authorities)),
    )


def _series(certificate: x509.Certificate) -> int:
    """Of a name such as 0123456789abcdef.7.gateway.wirelane."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (name,) = names.get_values_for_type(x509.DNSName)
        return int(name.split(".")[1])
    except (x509.ExtensionNotFound, ValueError, IndexError):
        return 0


class OnlyGateways(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """`authorities`: those in force, PEM."""

    def __init__(self, authorities: Callable[[], bytes], series: Series) -> None:
        self._authorities = authorities
        self._series = series

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """There is no caller to look at yet: that is done in the handler."""
        found = await continuation(details)
        if found is None:
            return None
        if found.response_streaming:
            stream = found.stream_stream or found.unary_stream

            async def streamed(request: Any, context: Any) -> AsyncIterator[Any]:
                await self._check(context)
                async for reply in stream(request, context):
                    yield reply

            return found._replace(**{"stream_stream" if found.request_streaming else "unary_stream": streamed})
        call = found.stream_unary or found.unary_unary

        async def answered(request: Any, context: Any) -> Any:
            await self._check(context)
            return await call(request, context)

        return found._replace(**{"stream_unary" if found.request_streaming else "unary_unary": answered})

    async def _check(self, context: Any) -> None:
        auth, authorities = context.auth_context(), self._authorities()
        reason = refusal(auth, authorities, datetime.now(UTC))
        if reason := reason or await self._series.refusal(series_of(auth, authorities)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)
