"""Enrolment: how a host becomes a node. The operator carries a join token to it; what follows travels in the clear.

The token's secret is the seed of a signing key (Ed25519), of which the database keeps the public half: who reads the
database can let nobody in. The host signs its request with it, the gateway signs its answer with the authority's key,
whose digest stands in the token; both signatures are over everything that was said. So no secret travels, and a
stranger on the way, or a proxy, can do no more than stop it. The first key that a token lets in is the only one: a host
whose answer was lost asks again with the same key, and anybody else is told that the token was used.

Of the request only the key is taken; names, purpose and dates are ours. Each token brings a new name, and the gateway
takes its node by that name alone: what was enrolled before is refused from the moment that a new token is used.
The text of a token and what is signed: docs/decisions/0021-enrolment.md. Called by http/enrol.py and the command line.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.authority import checked_public_key, new_node_name, node_certificate
from gateway.errors import Conflict, EnrolmentRefused
from gateway.model import Secret
from gateway.store import Store, authorities, join_tokens, nodes
from gateway.store.authorities import Trust
from gateway.store.join_tokens import JoinToken
from gateway.store.transaction import Transaction

FORM = "wl1"  # what a join token begins with, and its version
SEED_BYTES = 32
CHECK_DIGITS = 6  # they tell a slip of the hand from a wrong token
REQUEST, REPLY = "wirelane enrol 1 request", "wirelane enrol 1 reply"  # no signature of one stands for the other
NEW_TOKEN = "`wirelane-gateway node token {}` makes a new one"


@dataclass(frozen=True, slots=True)
class Request:
    """`token`: its public half. `key`: SubjectPublicKeyInfo, DER. `proof`: by the token, over all the rest."""

    token: bytes
    key: bytes
    nonce: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """`text`: JSON, as it is signed. `proof`: by the authority, over it and the request."""

    node: str
    text: str
    proof: bytes


class Enrolment:
    def __init__(self, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._now = now

    async def new_token(self, node: str, seconds: int, url: str = "") -> Secret:
        """The only time that it can be seen. What the node is stays as it is until the token is used; an older token of
        the node lets nobody in any more. `url`: of a gateway, for the host. Raises NotFound, Conflict."""
        seed = secrets.token_bytes(SEED_BYTES)
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()

        async def work(tx: Transaction) -> str:
            trust = await authorities.ensured(tx, self._now())
            about = await nodes.locked(tx, node)
            if about.is_local:
                raise Conflict(f"Node {node} is called through a socket of this host: it needs no certificate")
            expires = int(self._now().timestamp()) + seconds
            await join_tokens.put(tx, JoinToken(about.id, node, public, trust.signs.pin, new_node_name(), expires))
            return trust.signs.pin

        pin = await self._store.change(work)
        return Secret(token_text(node, seed, bytes.fromhex(pin), url))

    async def enrol(self, request: Request) -> Reply:
        """Raises EnrolmentRefused, InvalidValue, DatabaseUnavailable."""
        token = await self._store.read(lambda tx: join_tokens.found(tx, request.token))
        if token is None:
            raise EnrolmentRefused(
                "unknown-token",
                "This join token is unknown: it was replaced by a newer one, its node was removed, or it is another "
                "installation's",
            )
        _check_proof(request, token.node)
        checked_public_key(request.key)
        return await self._store.change(lambda tx: self._let_in(tx, request))

    async def _let_in(self, tx: Transaction, request: Request) -> Reply:
        token = await join_tokens.locked(tx, request.token)
        if token is None:
            raise EnrolmentRefused("unknown-token", "This join token was replaced by a newer one just now")
        now = self._now()
        _check_use(token, request.key, now.timestamp())
        trust = await authorities.listed(tx)
        pinned = trust.of(token.pin) if trust else None
        if trust is None or pinned is None:
            raise EnrolmentRefused(
                "gone-authority",
                f"The authority that this join token names is gone: {NEW_TOKEN.format(token.node)}",
            )
        node = await nodes.found(tx, token.node)
        if token.used_by is None:
            await join_tokens.bind(tx, token, request.key)
            await nodes.name_certificate(tx, token.node_id, token.tls_name)
        text = _answer(trust, token, request.key, node.target, now)
        proof = pinned.sign(signed(REPLY, token.node, request.nonce, request.key, text.encode()))
        return Reply(token.node, text, proof)


def _check_proof(request: Request, node: str) -> None:
    public = Ed25519PublicKey.from_public_bytes(request.token)
    try:
        public.verify(request.proof, signed(REQUEST, node, request.key, request.nonce))
    except InvalidSignature:
        raise EnrolmentRefused(
            "wrong-proof", "This request was not made with that join token, or changed on its way"
        ) from None


def _check_use(token: JoinToken, key: bytes, now: float) -> None:
    if token.used_by is not None and token.used_by != key:
        raise EnrolmentRefused(
            "used-token",
            f"This join token was used already, with another key. If that was not you, somebody else is {token.node} "
            f"now: {NEW_TOKEN.format(token.node)}, and once that is used he is out",
        )
    if now > token.expires:
        ago = int(now - token.expires)
        since = f"{ago} seconds" if ago < 120 else f"{ago // 60} minutes"
        raise EnrolmentRefused("expired-token", f"This join token expired {since} ago: {NEW_TOKEN.format(token.node)}")


def _answer(trust: Trust, token: JoinToken, key: bytes, address: str, now: datetime) -> str:
    certificate = node_certificate(trust.signs, key, token.node, token.tls_name, now)
    return json.dumps(
        {
            "certificate": certificate.decode(),
            "authorities": [one.decode() for one in trust.certificates],
            "time": int(now.timestamp()),
            "settings": {"address": address},
        }
    )


def token_text(node: str, seed: bytes, pin: bytes, url: str) -> str:
    body = ".".join((FORM, node, *map(_base64, (seed, pin, url.encode()))))
    return f"{body}.{hashlib.sha256(body.encode()).hexdigest()[:CHECK_DIGITS]}"


def signed(what: str, node: str, *parts: bytes) -> bytes:
    """One byte string, which can be taken apart in one way only."""
    return json.dumps([what, node, *map(_base64, parts)]).encode()


def _base64(raw: bytes) -> str:
    """Of RFC 4648, section 5, without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
