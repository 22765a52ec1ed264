"""Who may call: the access key in the cookie, and the address the call comes from. Stands in front of every path.

Everything under /api needs a key, also what does not exist there, so that a stranger learns nothing. Outside it are the
one-time links and /healthz; inside it only the OpenAPI document is open: it holds no secret and tools fetch it bare.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import ApiError, NotAuthorized
from gateway.http import envelope
from gateway.http.services import HttpSettings, Services

OPENAPI_PATH = "/api/v1/openapi.json"
COOKIE = "access_hash"
ACCESS_HASH = re.compile(r"[0-9a-f]{80}")

Address = IPv4Address | IPv6Address
Networks = Iterable[IPv4Network | IPv6Network]


class Access:
    """ASGI middleware: answers `Not authorized` itself, lets the rest through."""

    def __init__(self, app: ASGIApp, services: Services, settings: HttpSettings) -> None:
        self._app = app
        self._keys = services.keys
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None if scope["type"] != "http" or is_open(scope["path"]) else await self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await envelope.failure(refusal, self._settings.semantic)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> ApiError | None:
        try:
            return None if await self._allowed(scope) else NotAuthorized()
        except ApiError as error:  # nobody can be let in while the store is away
            return error

    async def _allowed(self, scope: Scope) -> bool:
        # Clients may send several Cookie headers (RFC 9113, 8.2.3).
        cookies = "; ".join(Headers(scope=scope).getlist("cookie"))
        access_hash = cookie_parser(cookies).get(COOKIE, "")
        client = client_address(scope, self._settings.trusted_proxies)
        if client is None or not ACCESS_HASH.fullmatch(access_hash):
            return False
        return await self._keys.authorised(access_hash, client)


def is_open(path: str) -> bool:
    return path == OPENAPI_PATH or not (path == "/api" or path.startswith("/api/"))


def client_address(scope: Scope, trusted: Networks) -> Address | None:
    """The peer, or, where the peer is a trusted proxy, the rightmost hop of X-Forwarded-For that is not one.

    Only the right end can be believed: each proxy appends whom it saw, the client may have written the rest.
    None: there is no address, or a proxy of ours wrote nonsense.
    """
    peer = scope.get("client")
    found = _parsed(peer[0]) if peer else None
    hops = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
    while found is not None and _is_in(found, trusted) and hops:
        hop = hops.pop().strip()
        if hop:
            found = _parsed(hop)
    return found


def _parsed(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped  # a dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d
    return address


def _is_in(address: Address, networks: Networks) -> bool:
    return any(address in network for network in networks)
