"""The whole HTTP door over a whole product, called in this process as a client would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from gateway.http.app import HttpSettings, Services, build_app
from tests.fakes.product import Product, services_of

CLIENT = "192.0.2.9"
PUBLIC_URL = "https://vpn.example.com"


@dataclass
class Api:
    """A client with an access key. `product`: what stands behind."""

    http: httpx.AsyncClient
    product: Product
    services: Services

    def serve(self, **settings: Any) -> Api:
        """The same product behind another door."""
        app = build_app(self.services, HttpSettings(**{"public_url": PUBLIC_URL, **settings}))
        return Api(_client(app, dict(self.http.cookies)), self.product, self.services)

    async def msg(self, method: str, path: str, **form: str) -> Any:
        """A call that succeeds."""
        answer = await self.http.request(method, f"/api/v1{path}", data=form or None)
        found = _envelope(answer)
        assert (answer.status_code, found["error"], found["status"]) == (200, "", "success"), found
        return found["msg"]

    async def error(self, method: str, path: str, **form: str) -> str:
        """A call that is refused."""
        found = _envelope(await self.http.request(method, f"/api/v1{path}", data=form or None))
        assert (found["msg"], found["status"]) == ("", "error")
        text = found["error"]
        assert isinstance(text, str) and text
        return text


def _envelope(answer: httpx.Response) -> dict[str, Any]:
    found = answer.json()
    assert isinstance(found, dict) and set(found) == {"error", "msg", "status"}, found
    assert answer.headers["content-type"] == "application/json"
    return found


def _client(app: Callable[..., Any], cookies: dict[str, str], address: str = CLIENT) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(address, 40000))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", cookies=cookies)


@pytest.fixture
async def api(product: Product) -> AsyncIterator[Api]:
    """With one server, Default_1 = 10.0.0.1/24, and a key for CLIENT."""
    access_hash = await product.keys.add("tests", [CLIENT])
    services = services_of(product)
    app = build_app(services, HttpSettings(PUBLIC_URL))
    async with _client(app, {"access_hash": access_hash.reveal()}) as http:
        api = Api(http, product, services)
        await api.msg("POST", "/wireguard", b_download="12", b_upload="10")
        yield api
