"""Enrolment, the host's side: from a join token to an identity. Run once by `wirelane-agent enrol`.

The token holds the seed of a signing key, the digest of the authority's key, and maybe where a gateway is. The request
is signed with the former, and the answer is believed only if the latter signed it: so the way between may be plain HTTP
and any proxy. The key that is to be certified is made here, kept in a file before anything is asked, and never leaves
this host: when an answer was lost, the same command asks again with the same key, and gets it.

What is signed: docs/decisions/0021-enrolment.md; gateway/enrolment.py is the other side. Called by joining.py.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import EnrolmentFailed, IdentityError
from agent.identity import Identity, identity_of, public_key_of
from agent.model import Secret

FORM, FORMS = "wl1", "wl"
MOST_CHARACTERS = 2048  # of a token
REQUEST, REPLY = "wirelane enrol 1 request", "wirelane enrol 1 reply"
NONCE_BYTES = 16
# Clocks further apart would part gateway and agent soon: a gateway renews its certificate three days before it ends.
MOST_APART_SECONDS = 2 * 86_400
APART_SECONDS = 60  # what is worth telling


@dataclass(frozen=True, slots=True, repr=False)
class JoinToken:
    """`pin`: SHA-256 of the authority's public key. `url`: of a gateway, "" = the token names none."""

    node: str
    seed: bytes
    pin: bytes
    url: str

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises EnrolmentFailed."""
        text = text.strip()
        if not text:
            raise EnrolmentFailed("there is no join token: `wirelane-gateway node add` or `node token` prints one")
        if not text.startswith(FORMS):
            raise EnrolmentFailed(f"this is no join token: one begins with {FORM}.")
        if not text.startswith(f"{FORM}."):
            raise EnrolmentFailed(
                "this join token is for another version of wirelane-agent: install the gateway's version"
            )
        try:
            body, check = text.rsplit(".", 1)
            if hashlib.sha256(body.encode()).hexdigest()[:6] != check:
                raise ValueError("check")
            _, node, *parts = body.split(".")
            seed, pin, url = map(_bytes, parts)
            if len(seed) != 32 or len(pin) != 32:
                raise ValueError("length")
            return cls(node, seed, pin, url.decode())
        except ValueError:
            raise EnrolmentFailed("this join token is cut off or misspelled: copy it again, whole") from None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is under way. `body`: JSON."""

    token: JoinToken
    key: Secret
    nonce: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Enrolled:
    """`address`: where gateways will call this node. `ahead`: of the gateway's clock, in seconds."""

    identity: Identity
    address: str
    ahead: float


def asked(token: JoinToken, key: Secret) -> Asked:
    """`key`: this node's new one, PEM."""
    signing = Ed25519PrivateKey.from_private_bytes(token.seed)
    public, nonce = public_key_of(key), secrets.token_bytes(NONCE_BYTES)
    fields = {
        "token": signing.public_key().public_bytes_raw(),
        "key": public,
        "nonce": nonce,
        "proof": signing.sign(signed(REQUEST, token.node, public, nonce)),
    }
    return Asked(token, key, nonce, json.dumps({name: _base64(raw) for name, raw in fields.items()}).encode())


def enrolled(asked: Asked, answer: bytes, now: datetime) -> Enrolled:
    """What the gateway's answer makes this node. Raises EnrolmentFailed."""
    text, proof = _reply(answer)
    try:
        reply = json.loads(text)
        authorities = [str(one) for one in reply["authorities"]]
        certificate, time, address = str(reply["certificate"]), int(reply["time"]), str(reply["settings"]["address"])
        pinned = _pinned(asked.token, [x509.load_pem_x509_certificate(one.encode()) for one in authorities])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise EnrolmentFailed("the answer makes no sense: is that the URL of a gateway of the same version?") from None
    try:
        said = signed(REPLY, asked.token.node, asked.nonce, public_key_of(asked.key), text.encode())
        pinned.verify(proof, said, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise EnrolmentFailed(
            "the answer was changed on its way, or is another request's: somebody is between this host and the gateway"
        ) from None
    ahead = now.timestamp() - time
    if abs(ahead) > MOST_APART_SECONDS:
        raise EnrolmentFailed(
            f"this host's clock is {apart(ahead)} the gateway's: set the wrong one of the two, then run the same "
            "command again while the token holds"
        )
    try:
        identity = identity_of(certificate.encode(), asked.key, "".join(authorities).encode())
        identity.check(now)
    except IdentityError as error:
        raise EnrolmentFailed(f"{error} (this host's clock is {apart(ahead)} the gateway's)") from None
    return Enrolled(identity, address, ahead)


def _reply(answer: bytes) -> tuple[str, bytes]:
    """What was signed, and the signature. Raises EnrolmentFailed, with the gateway's own words where it refused."""
    try:
        envelope = json.loads(answer)
        if envelope["status"] != "success":
            raise EnrolmentFailed(f"the gateway says: {str(envelope['error'])[:400]}")
        return str(envelope["msg"]["reply"]), _bytes(envelope["msg"]["proof"].rstrip("="))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise EnrolmentFailed("that is not the answer of a gateway: is the URL right?") from None


def _pinned(token: JoinToken, authorities: list[x509.Certificate]) -> ec.EllipticCurvePublicKey:
    for one in authorities:
        key = one.public_key()
        pin = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        if hmac.compare_digest(pin, token.pin) and isinstance(key, ec.EllipticCurvePublicKey):
            return key
    raise EnrolmentFailed(
        "who answered is not the gateway that made this token, but one with another authority: is the URL right?"
    )


def apart(ahead: float) -> str:
    """Of this host's clock: "3.0 days ahead of"."""
    days, seconds = abs(ahead) / 86_400, abs(ahead)
    how_far = f"{days:.1f} days" if days >= 1 else f"{seconds:.0f} seconds"
    return f"{how_far} {'ahead of' if ahead > 0 else 'behind'}"


def signed(what: str, node: str, *parts: bytes) -> bytes:
    """One byte string, which can be taken apart in one way only."""
    return json.dumps([what, node, *map(_base64, parts)]).encode()


def _base64(raw: bytes) -> str:
    """Of RFC 4648, section 5, without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """Raises ValueError."""
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
