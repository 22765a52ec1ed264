"""What `wirelane-agent enrol` does: reads the token, asks a gateway over HTTP, keeps what came. See enrol.py.

Door: HTTP. One request, bounded in size and time; redirects are told, not followed. A key that was asked with is kept
until an identity stands: the same command can be run again. Called by __main__.py.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import h11

from agent.enrol import MOST_CHARACTERS, Asked, Enrolled, JoinToken, asked, enrolled
from agent.errors import EnrolmentFailed, IdentityError
from agent.identity import SERIES_FILE, load, new_key, public_key_of, save, write_private
from agent.model import Secret

ASK_SECONDS = 30.0
MOST_BYTES = 65_536  # of an answer
KEY_FILE = "next.key"  # what is asked for; with an identity it goes
PATH = "/enrol"
AGAIN = "run the same command again while the token holds"


def join(token_file: str, gateway: str, directory: Path, now: datetime) -> Enrolled:
    """`token_file`: a path, or "-" for standard input. `gateway`: its URL, "" = the token's. Saves the identity.

    Raises EnrolmentFailed, IdentityError.
    """
    token = JoinToken.parse(_read_token(token_file))
    url = _checked_url(gateway or token.url)
    request = asked(token, _kept_key(directory))
    answer = asyncio.run(_answer(url, request))
    try:
        found = enrolled(request, answer, now)
    except EnrolmentFailed as refused:
        raise EnrolmentFailed(f"{refused}{_already(directory, token)}") from None
    save(directory, found.identity, now)
    for passed in (KEY_FILE, SERIES_FILE):
        (directory / passed).unlink(missing_ok=True)
    return found


def _already(directory: Path, token: JoinToken) -> str:
    """What somebody has to know who runs a command again that was done."""
    with suppress(IdentityError):
        held = load(directory)
        if held is not None and held.node == token.node:
            return f". This host was made node {held.node} before and is it as long as gateways do not say otherwise"
    return ""


def _read_token(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.readline(MOST_CHARACTERS)
        with open(path, encoding="utf-8") as file:
            return file.read(MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise EnrolmentFailed(f"{path}: {reason}") from None


def _checked_url(text: str) -> SplitResult:
    if not text:
        raise EnrolmentFailed("this token names no gateway: give its URL with --gateway, such as http://192.0.2.1:8080")
    try:
        url = urlsplit(text)
        good = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        good = False
    if (
        not good
        or url.query
        or url.fragment
        or url.username is not None
        or not text.isascii()
        or not text.isprintable()
    ):
        raise EnrolmentFailed(f"{text!r} must be a gateway's URL, such as http://192.0.2.1:8080")
    return url


def _kept_key(directory: Path) -> Secret:
    path = directory / KEY_FILE
    try:
        kept = Secret(path.read_text(encoding="ascii"))
        public_key_of(kept)
        return kept
    except (OSError, ValueError):  # there is none, or half of one
        made = new_key()
        write_private(path, made.reveal().encode())
        return made


async def _answer(url: SplitResult, request: Asked) -> bytes:
    where = f"{url.scheme}://{url.netloc}"
    try:
        async with asyncio.timeout(ASK_SECONDS):
            response, body = await _posted(url, request.body)
    except TimeoutError:
        raise EnrolmentFailed(f"{where} did not answer within {ASK_SECONDS:.0f} seconds: {AGAIN}") from None
    except ssl.SSLCertVerificationError as error:
        raise EnrolmentFailed(
            f"{where}: its certificate does not hold here ({error.verify_message}); with --gateway another URL can be "
            "given: plain http:// is as safe, for no secret travels"
        ) from None
    except ssl.SSLError:
        raise EnrolmentFailed(f"{where} does not speak TLS: is the URL right?") from None
    except (h11.RemoteProtocolError, ConnectionResetError, BrokenPipeError):
        raise EnrolmentFailed(
            f"{where} gave no whole HTTP answer: is the URL right? If it was cut off, {AGAIN}"
        ) from None
    except OSError as error:
        raise EnrolmentFailed(f"{where} cannot be reached: {error.strerror or error}") from None
    if 300 <= response.status_code < 400:
        to = dict(response.headers).get(b"location", b"-").decode(errors="replace")
        raise EnrolmentFailed(f"{where} sends on to {to.removesuffix(PATH)}: give that URL with --gateway")
    if not body.startswith(b"{"):
        raise EnrolmentFailed(f"{where} answered {response.status_code}, and not as a gateway does: is the URL right?")
    return body


async def _posted(url: SplitResult, body: bytes) -> tuple[h11.Response, bytes]:
    """Raises OSError, ssl.SSLError, h11.RemoteProtocolError."""
    is_tls = url.scheme == "https"
    port = url.port or (443 if is_tls else 80)
    context = ssl.create_default_context() if is_tls else None
    reader, writer = await asyncio.open_connection(url.hostname, port, ssl=context)
    try:
        http = h11.Connection(h11.CLIENT)
        headers = [
            *(("Host", url.netloc), ("Content-Type", "application/json"), ("Connection", "close")),
            ("Content-Length", str(len(body))),
        ]
        request = h11.Request(method="POST", target=url.path.rstrip("/") + PATH, headers=headers)
        writer.write(b"".join(http.send(event) or b"" for event in (request, h11.Data(body), h11.EndOfMessage())))
        return await _received(http, reader)
    finally:
        writer.transport.abort()  # nothing more is said, and nothing waited for


async def _received(http: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Response, bytes]:
    response, body = None, bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(MOST_BYTES))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            return response, bytes(body)
        if len(body) > MOST_BYTES:
            raise h11.RemoteProtocolError("too much")
