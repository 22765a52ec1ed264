"""/otl/<key>: the one-time link's public pages.

GET and HEAD only ask: mail and messenger scanners open links, and may do so as often as they like. A POST from the
page's button opens the link; it is used up when the page leaves, and not when nobody was there to take it. Unknown,
used and expired links look the same, so a stranger learns nothing. The pages load nothing from anywhere: style and
scripts are inside them and allowed by their hashes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from html import escape
from string import Template

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from gateway import link_page, profile
from gateway.errors import ApiError, Conflict
from gateway.http.admission import PLACE
from gateway.http.configuration import config_picture, config_text
from gateway.http.note import SUCCESS, Note
from gateway.http.pages.frame import PLAIN, Look, buttons, framed, page
from gateway.http.repeats import Repeats
from gateway.http.services import HttpSettings, Services
from gateway.model import Account
from gateway.one_time_links import LEASE_SECONDS, Lease, OneTimeLinks

KEY = re.compile(r"[0-9a-f]{80}")
# wg-quick and the apps take the tunnel's name from the file's and want at most 15 characters (IFNAMSIZ).
FILE_NAME_LENGTH = 15
HANG_UP_SECONDS = 0.05
SHOW_SECONDS = LEASE_SECONDS / 2  # the page is on its way by then, or it is not shown
FILE_NAME_START, FILE_NAME_DIGITS = 8, 6
WINDOWS_OWN = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])", re.IGNORECASE)  # no file may be called so there


FILE, ASK, CONFIG, QR, TEXT, OWN_KEY, GONE, LATER, IKEV2 = (
    Template(page(f"{name}.html"))
    for name in ("file", "ask", "config", "qr", "text", "own_key", "gone", "later", "ikev2")
)
ASK_SCRIPT, CONFIG_SCRIPT = page("ask.js"), page("config.js")

log = logging.getLogger("gateway.http")


class Pages:
    def __init__(self, services: Services, settings: HttpSettings) -> None:
        self._services = services
        self._settings = settings
        self._failures = Repeats("link-failed-again", logging.ERROR)

    async def ask(self, request: Request) -> Response:
        """The page with the button. Uses nothing up."""
        key, links = request.path_params["key"], self._services.one_time_links
        try:
            look = await links.page()
            if not KEY.fullmatch(key) or not await links.valid(key):
                return _gone(look)
        except ApiError as error:
            return self._failed(error)
        return framed("Your VPN access", ASK.substitute(), ASK_SCRIPT, look)

    async def open(self, request: Request) -> Response:
        """Shows the configuration, once."""
        key, links, note = request.path_params["key"], self._services.one_time_links, Note.of(request.scope)
        try:
            look = await links.page()
            lease = await links.lease(key) if KEY.fullmatch(key) else None
            if lease is None:
                return _gone(look)
            note.is_change = True
            note.subject = f"account={lease.account.name}"
            try:
                shown = await self._configuration(lease.account, look)
            except BaseException:
                with suppress(ApiError):  # then the lease ends by itself
                    await links.release(lease)
                raise
        except ApiError as error:
            note.outcome = error.text
            return self._failed(error)
        return OncePage(shown, links, lease, note)

    def _failed(self, error: ApiError) -> Response:
        if self._failures.is_first(f"reason={error.text}"):
            log.error("event=link-failed reason=%s", error.text)
        return _later()

    async def _configuration(self, account: Account, look: Look) -> HTMLResponse:
        text = await config_text(self._services, self._settings, account)
        own = look["config_wireguard"]
        ikev2 = await self._ikev2(account, look["config_ikev2"]) if look["config_ikev2"]["enable"] else ""
        body = CONFIG.substitute(
            name=escape(account.name),
            wireguard=await _wireguard(account, text, own) if own["enable"] else "",
            ikev2=ikev2,
        )
        has_text = own["enable"] and own["enable_config_text"]
        return framed("Your VPN configuration", body, CONFIG_SCRIPT if has_text else "", look)

    async def _ikev2(self, account: Account, own: Mapping[str, str | bool]) -> str:
        """ "" where its server has no IKEv2."""
        server = await self._services.servers.get(account.server)
        try:
            shown = await self._services.ikev2.of(server)
        except Conflict:
            return ""
        host, authority = await self._services.servers.endpoint(server), shown.authority.der
        name = file_name(account.name)
        android = profile.ikev2_profile(account, host, shown.domain, authority).encode()
        apple = profile.mobileconfig(account, host, shown.domain, authority)
        return IKEV2.substitute(
            identity=escape(shown.domain),
            username=escape(account.username),
            password=escape(account.password.reveal()),
            file_name=escape(name),
            android=_data("application/vnd.strongswan.profile", android),
            apple=_data("application/x-apple-aspen-config", apple),
            authority=_data("application/x-x509-ca-cert", authority),
            profile=escape(str(own["download_profile_button_label"]) or "profile"),
            certificate=escape(str(own["download_certificate_button_label"]) or "Certificate, for Windows and others"),
            buttons=buttons(own),
            windows=escape(profile.windows_commands(shown.domain, f"{name}-ca.crt")),
        )


async def _wireguard(account: Account, text: str, own: Mapping[str, str | bool]) -> str:
    """What the operator wants shown of it. No app takes a configuration without a private key from a picture: then it
    says what to do instead."""
    name = escape(f"{file_name(account.name)}.conf")
    label = escape(str(own["download_config_button_label"])) or f"Download {name}"
    parts = (
        "" if account.private_key else OWN_KEY.substitute(),
        FILE.substitute(file_name=name, file=_data("application/octet-stream", text.encode()), label=label),
        await _qr(text) if account.private_key and own["enable_config_qr"] else "",
        TEXT.substitute(text=escape(text)) if own["enable_config_text"] else "",
        buttons(own),
    )
    return "\n".join(part for part in parts if part)


def _data(kind: str, content: bytes) -> str:
    """As data: the file can be saved without asking for it again, which the link would not allow."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


class OncePage(Response):
    """The page of a link that is leased: shown, the link is used up; not shown, it can be opened again.

    It is used up immediately before the page leaves, when the head is out and nothing waits for the reader any more:
    who lets his connection run full and his lease run out must not read the page after somebody else has.
    """

    def __init__(self, page: HTMLResponse, links: OneTimeLinks, lease: Lease, note: Note) -> None:
        super().__init__()
        self._page = page
        self._links = links
        self._lease = lease
        self._note = note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"type": "http.response.start", "status": self._page.status_code, "headers": self._page.raw_headers}
        try:
            async with asyncio.timeout(SHOW_SECONDS):
                if await _hung_up(receive, HANG_UP_SECONDS):
                    raise ClientDisconnect
                await send(head)  # waits until he has read what went before
                if await _hung_up(receive, 0):
                    raise ClientDisconnect
                if not await self._links.use_up(self._lease):
                    raise TimeoutError
        except BaseException as error:
            self._note.outcome = "nobody was there to take the page: the link can be opened again"
            with suppress(ApiError):  # then the lease ends by itself
                await self._links.release(self._lease)
            if not isinstance(error, ApiError | TimeoutError):
                raise
            await _break_off(scope, receive)
            raise ClientDisconnect from error
        await send({"type": "http.response.body", "body": self._page.body})
        self._note.outcome = SUCCESS


async def _break_off(scope: Scope, receive: Receive) -> None:
    """He is in the middle of an answer: there is nothing else to say to him."""
    if place := scope.get("state", {}).get(PLACE):
        place.end()
        while (await receive())["type"] != "http.disconnect":
            pass


async def _hung_up(receive: Receive, seconds: float) -> bool:
    """Who pressed the button and was cut off is gone by now, or a moment later."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass  # of a body that nobody asked for
    except TimeoutError:
        return False
    return True


def file_name(account: str) -> str:
    """Of the configuration. Long names that begin alike have different ones, also where capitals do not count."""
    if len(account) <= FILE_NAME_LENGTH and not WINDOWS_OWN.fullmatch(account):
        return account
    digits = base64.b32encode(hashlib.sha256(account.encode()).digest()).decode().lower()[:FILE_NAME_DIGITS]
    return f"{account[:FILE_NAME_START]}-{digits}"


async def _qr(text: str) -> str:
    return QR.substitute(picture=_data("image/png", await config_picture(text)))


def _gone(look: Look) -> Response:
    own = link_page.markup(str(look["config"]["not_relevant"]))
    return framed("Link not relevant", own or GONE.substitute(), "", look, 404)


def _later() -> Response:
    return framed("Not available", LATER.substitute(), "", PLAIN, 503)
