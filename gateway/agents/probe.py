"""Why an agent over TCP cannot be reached, in words: gRPC has the same one for most reasons ("Socket closed").

Only after a call has failed, and not more often than needed: this gateway's own certificate is looked at first, which
costs nothing; then one handshake is tried, in a thread, with the standard library. An agent that takes us answers it.
One that refuses us closes the connection without a word: a gRPC server sends no alert. Called by client.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from gateway.agents.lines import Way
from gateway.authority import Credentials
from gateway.target import address

PROBE_SECONDS = 2.0  # all of one probe
AGAIN_SECONDS = 10.0  # a reason is good for so long
THREADS = 4
SILENT = ("timed out", "timeout", "keepalive", "deadline", "shutdown")  # gRPC's words for: nothing came back

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # HTTP/2: preface and empty settings, RFC 9113 3.4

# X509_V_ERR_... of OpenSSL's x509_vfy.h
NOT_YET_VALID, EXPIRED, NO_ISSUER, SELF_SIGNED, SELF_SIGNED_CHAIN, PURPOSE, WRONG_NAME = 9, 10, 20, 18, 19, 26, 62
OTHER_AUTHORITY = (NO_ISSUER, SELF_SIGNED, SELF_SIGNED_CHAIN, 7, 21)  # 7, 21: the right name, another key


class Why(NamedTuple):
    """`cause`: a word for what may be counted: of AgentUnreachable. `text`: for people."""

    cause: str
    text: str


class Reasons:
    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "probe")
        self._known: dict[tuple[str, str], tuple[float, Why | None]] = {}  # by target and name: until when, and what

    async def why(self, way: Way, said: str) -> Why:
        """`said`: gRPC's own words; the answer, if a probe finds nothing wrong."""
        assert way.credentials is not None
        if own := own_trouble(way.credentials, datetime.now(UTC)):
            return Why("own-certificate", own)
        if any(word in said.lower() for word in SILENT):
            text = f"nothing answers at {way.target}: its host is away, or a firewall on the way drops what is sent"
            return Why("no-answer", text)
        now, key = monotonic(), (way.target, way.tls_name)
        self._known = {which: known for which, known in self._known.items() if known[0] > now}
        if key not in self._known:
            self._known[key] = now + AGAIN_SECONDS, await self._probed(way)
        return self._known[key][1] or Why("no-answer", said)

    async def _probed(self, way: Way) -> Why | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return await loop.run_in_executor(self._threads, probe, way, monotonic() + PROBE_SECONDS * 0.9)
        except TimeoutError:
            return None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def own_trouble(credentials: Credentials, now: datetime) -> str:
    """Why no agent can take this gateway's certificate; "" = not its fault."""
    certificate = x509.load_pem_x509_certificate(credentials.certificate)
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    clock = f"by this host's clock it is {_time(now)}; if that is right, restart the gateway"
    if now > until:
        return f"this gateway's own certificate ended at {_time(until)}, and {clock}"
    if now < since:
        return f"this gateway's own certificate begins at {_time(since)}, and {clock}"
    if not any(_issued(certificate, one) for one in x509.load_pem_x509_certificates(credentials.authorities)):
        return "this gateway's own certificate is not of its own authority: restart the gateway"
    return ""


def probe(way: Way, deadline: float) -> Why | None:
    """Tries one handshake. Blocks, until `deadline` (of `monotonic`) at most. None = the agent takes this gateway."""
    assert way.credentials is not None
    try:
        with _handshake(way, _context(way.credentials), deadline) as tls:
            if _is_taken(tls):
                return None
        return Why(
            "refused",
            f"the agent at {way.target} refuses this gateway's certificate: it was enrolled with another authority, or "
            "its host's clock is off; `wirelane-agent doctor` there tells",
        )
    except ssl.SSLCertVerificationError as error:
        return Why("certificate", _wrong_certificate(way, error, deadline))
    except (ssl.SSLError, OSError) as error:
        return Why("no-handshake", _no_handshake(way.target, error))


def _is_taken(tls: ssl.SSLSocket) -> bool:
    """In TLS 1.3 our half is done before the other side has looked at our certificate; its verdict comes now."""
    try:
        tls.sendall(HELLO)
        return bool(tls.recv(1))
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
        return False


def _wrong_certificate(way: Way, error: ssl.SSLCertVerificationError, deadline: float) -> str:
    shown = _shown(way, deadline)
    if shown is None:
        return f"the certificate of the agent at {way.target} does not hold: {error.verify_message}"
    who, code = f"the agent at {way.target}", error.verify_code
    since, until = shown.not_valid_before_utc, shown.not_valid_after_utc
    now = f"and here it is {_time(datetime.now(UTC))}"
    if code == EXPIRED:
        return f"the certificate of {who} ended at {_time(until)}, {now}: enrol it again, or set this host's clock"
    if code == NOT_YET_VALID:
        return f"the certificate of {who} begins at {_time(since)}, {now}: set this host's clock"
    if code in OTHER_AUTHORITY:
        return f"{who} has a certificate of another authority: enrol it again, with a token of this gateway"
    if code == PURPOSE:
        return f"{who} shows a certificate that is not a node's: is {way.target} right?"
    if code == WRONG_NAME:
        return (
            f"{who} is another node, or was enrolled anew since: it shows {', '.join(_names(shown)) or 'no name'}, "
            f"this node's is {way.tls_name}; is {way.target} right?"
        )
    return f"the certificate of {who} does not hold: {error.verify_message}"


def _no_handshake(where: str, error: OSError) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return f"what listens at {where} does not speak TLS: it is not an agent, or not its fleet address"
    if "PROTOCOL_VERSION" in reason or reason == "UNSUPPORTED_PROTOCOL":
        return f"what listens at {where} does not speak TLS 1.3: it is not an agent"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {where}: the agent is not running, is not enrolled, or has no listen_fleet"
    if isinstance(error, socket.gaierror):
        return f"{where}: its host name is not known here ({error.strerror})"
    if isinstance(error, TimeoutError):
        return f"{where} takes the connection and then says nothing: the agent hangs, or it is not an agent"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError):
        return f"what listens at {where} ends the connection before it shows a certificate: it is not an agent"
    return f"{where}: {error.strerror or error}"


def _shown(way: Way, deadline: float) -> x509.Certificate | None:
    """The certificate that is there, whosever it is: asked for without checking it, and nothing is sent."""
    context = _context(None)
    try:
        with _handshake(way, context, deadline) as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(True) or b"")
    except (OSError, ValueError):
        return None


@contextmanager
def _handshake(way: Way, context: ssl.SSLContext, deadline: float) -> Iterator[ssl.SSLSocket]:
    with socket.create_connection(address(way.target), _left(deadline)) as raw:
        raw.settimeout(_left(deadline))
        with context.wrap_socket(raw, server_hostname=way.tls_name) as tls:
            tls.settimeout(_left(deadline))
            yield tls


def _context(own: Credentials | None) -> ssl.SSLContext:
    """None: checks nothing and shows nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if own is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(cadata=own.authorities.decode())
    memory = os.memfd_create("pem", os.MFD_CLOEXEC)  # load_cert_chain wants a path; this one is never on a disk
    try:
        os.write(memory, own.key.reveal().encode() + b"\n" + own.certificate)
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.DNSName)


def _left(deadline: float) -> float:
    return max(deadline - monotonic(), 0.001)


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
