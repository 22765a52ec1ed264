"""An authority, the identities of nodes and the credentials of gateways, as they are and wrong in every way."""

from __future__ import annotations

import socket
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent import identity as identities
from agent import model as agent_model
from gateway import authority as authorities
from gateway.authority import Authority, Credentials
from gateway.model import Secret

NAME = "00112233aabbccdd.node.wirelane"
LONG_AGO = timedelta(days=-200)  # what was issued then has ended
SOON = timedelta(days=9)  # what is issued then has not begun: it is dated back by a week


def an_authority() -> Authority:
    return authorities.new_authority(datetime.now(UTC))


def an_identity(
    authority: Authority, name: str = NAME, *, at: timedelta = timedelta(), trusts: bytes = b""
) -> identities.Identity:
    """Of a node. `trusts`: whose gateways may call; its own authority's, unless said."""
    key = identities.new_key()
    now = datetime.now(UTC) + at
    certificate = authorities.node_certificate(authority, identities.public_key_of(key), "fra", name, now)
    return identities.Identity("fra", certificate, key, trusts or authority.certificate)


def credentials(authority: Authority, *, at: timedelta = timedelta(), trusts: bytes = b"") -> Credentials:
    """Of a gateway."""
    key, certificate = authorities.gateway_certificate(authority, datetime.now(UTC) + at)
    return Credentials(certificate, key, trusts or authority.certificate)


def as_gateway(identity: identities.Identity) -> Credentials:
    """A node's key and certificate, in the hands of somebody who calls nodes with them."""
    return Credentials(identity.certificate, Secret(identity.key.reveal()), identity.authorities)


def as_node(own: Credentials) -> identities.Identity:
    """The other way round."""
    key = agent_model.Secret(own.key.reveal())
    return identities.Identity("gateway", own.certificate, key, own.authorities)


def written(directory: Path, identity: identities.Identity) -> None:
    """Past all checks but those of its birth: `save` takes nothing that has ended."""
    text = identity.key.reveal().encode() + identity.certificate + identity.authorities
    identities.write_private(directory / identities.FILE, text)


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


def client_context(own: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=own.authorities.decode())
    _load(context, own.key.reveal().encode() + own.certificate)
    context.set_alpn_protocols(["h2"])
    return context


def server_context(identity: identities.Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, identity.key.reveal().encode() + identity.certificate)
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
