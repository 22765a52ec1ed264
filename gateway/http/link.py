"""/otl/<key>: the one-time link's public pages.

GET and HEAD only ask: mail and messenger scanners open links, and may do so as often as they like. A POST from the
page's button opens the link and uses it up. Unknown, used and expired links look the same, so a stranger learns
nothing. The pages load nothing from anywhere: style and scripts are inside them and allowed by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from html import escape
from importlib.resources import files
from string import Template

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gateway.errors import ApiError
from gateway.http.account import config_picture, config_text
from gateway.http.services import HttpSettings, Services

KEY = re.compile(r"[0-9a-f]{80}")
# wg-quick and the Android app take the tunnel's name from the file's and want at most 15 characters (IFNAMSIZ).
FILE_NAME_LENGTH = 15


def _page(name: str) -> str:
    return files("gateway.http").joinpath("pages", name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


FRAME, ASK, CONFIG, QR, OWN_KEY, GONE, LATER = (
    Template(_page(f"{name}.html")) for name in ("frame", "ask", "config", "qr", "own_key", "gone", "later")
)
STYLE, ASK_SCRIPT, CONFIG_SCRIPT = _page("style.css"), _page("ask.js"), _page("config.js")
POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_source(STYLE)}",
        f"script-src {_source(ASK_SCRIPT)} {_source(CONFIG_SCRIPT)}",
        "img-src data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
}

log = logging.getLogger("gateway.http")


class Pages:
    def __init__(self, services: Services, settings: HttpSettings) -> None:
        self._services = services
        self._settings = settings

    async def ask(self, request: Request) -> Response:
        """The page with the button. Uses nothing up."""
        key = request.path_params["key"]
        try:
            if not KEY.fullmatch(key) or not await self._services.links.valid(key):
                return _gone()
        except ApiError as error:
            return _later(error)
        return _framed("Your VPN access", ASK.substitute(), ASK_SCRIPT)

    async def open(self, request: Request) -> Response:
        """Shows the configuration, once."""
        key = request.path_params["key"]
        try:
            account = await self._services.links.open(key) if KEY.fullmatch(key) else None
            if account is None:
                return _gone()
            text = await config_text(self._services, self._settings, account)
        except ApiError as error:
            return _later(error)
        body = CONFIG.substitute(
            name=escape(account.name),
            text=escape(text),
            # As data: the file can be saved without asking for it again, which the link would not allow.
            file=f"data:application/octet-stream;base64,{base64.b64encode(text.encode()).decode()}",
            file_name=escape(f"{account.name[:FILE_NAME_LENGTH]}.conf"),
            # No app takes a configuration without a private key from a picture: then it says what to do instead.
            own_key="" if account.private_key else OWN_KEY.substitute(),
            qr=await _qr(text) if account.private_key else "",
        )
        return _framed("Your VPN configuration", body, CONFIG_SCRIPT)


async def _qr(text: str) -> str:
    picture = base64.b64encode(await config_picture(text)).decode()
    return QR.substitute(picture=f"data:image/png;base64,{picture}")


def _gone() -> Response:
    return _framed("Link not relevant", GONE.substitute(), "", 404)


def _later(error: ApiError) -> Response:
    log.error("event=link-failed reason=%s", error.text)
    return _framed("Not available", LATER.substitute(), "", 503)


def _framed(title: str, body: str, script: str, status: int = 200) -> Response:
    page = FRAME.substitute(
        title=escape(title), style=STYLE, body=body, script=f"<script>{script}</script>" if script else ""
    )
    return HTMLResponse(page, status, headers=HEADERS)
