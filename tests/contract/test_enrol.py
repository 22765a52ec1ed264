"""Enrolment over real HTTP: a real gateway, and what `wirelane-agent enrol` does on a host. Every refusal is made for
real, and somebody in between does what he can."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent import enrol, joining
from agent.__main__ import main as agent_main
from agent.enrol import Enrolled, JoinToken
from agent.errors import EnrolmentFailed
from agent.identity import load
from gateway.authority import new_authority
from gateway.enrolment import token_text
from gateway.errors import Conflict
from gateway.store import authorities, join_tokens
from gateway.store.join_tokens import JoinToken as Row
from tests.contract.served import Served, served
from tests.fakes import direct
from tests.fakes.cluster import self_signed

NODE, ADDRESS = "fra1", "198.51.100.11:7443"
HOUR = 3600


@pytest.fixture
def gateway(database_url: str) -> Iterator[Served]:
    with served(database_url) as gateway:
        gateway.do(direct.add_node(gateway.product.store, NODE, ADDRESS))
        yield gateway


def new_token(gateway: Served, seconds: int = HOUR, url: str | None = None) -> str:
    made = gateway.do(gateway.product.enrolment.new_token(NODE, seconds, gateway.url if url is None else url))
    return made.reveal()


def tls_name(gateway: Served) -> str:
    return gateway.do(direct.node(gateway.product.store, NODE)).tls_name


def join(token: str, host: Path, url: str = "", ahead: timedelta = timedelta()) -> Enrolled:
    """As `wirelane-agent enrol` on a host whose folder this is, and whose clock is so far ahead."""
    host.mkdir(exist_ok=True)
    (host / "token").write_text(f"{token}\n")
    return joining.join(str(host / "token"), url, host / "identity", datetime.now(UTC) + ahead)


def refusal(token: str, host: Path, url: str = "", ahead: timedelta = timedelta()) -> str:
    with pytest.raises(EnrolmentFailed) as caught:
        join(token, host, url, ahead)
    assert load(host / "identity") is None
    return str(caught.value)


# -- how it goes ------------------------------------------------------------------------------------------------------


def test_a_host_with_a_token_becomes_its_node(gateway: Served, tmp_path: Path) -> None:
    before = tls_name(gateway)
    found = join(new_token(gateway), tmp_path / "host")
    kept = load(tmp_path / "host" / "identity")
    assert kept == found.identity and kept is not None
    kept.check(datetime.now(UTC))
    assert (kept.node, found.address, abs(found.ahead) < 5) == (NODE, ADDRESS, True)
    assert (before, tls_name(gateway)) == ("", kept.name)
    trust = gateway.do(gateway.product.store.read(authorities.listed))
    assert trust is not None and kept.authorities == trust.signs.certificate
    assert [path.name for path in (tmp_path / "host" / "identity").iterdir()] == ["identity.pem"]


def test_no_secret_travels(gateway: Served, tmp_path: Path) -> None:
    token = new_token(gateway)
    with between(gateway) as way:
        join(token, tmp_path / "host", way.url)
    seed = JoinToken.parse(token).seed
    kept = load(tmp_path / "host" / "identity")
    assert kept is not None
    wire = b"".join(way.heard)
    assert b"PRIVATE" not in wire and b"BEGIN CERTIFICATE" in wire.replace(b"\\n", b"\n")
    for spelled in (base64.b64encode(seed), base64.urlsafe_b64encode(seed), seed.hex().encode(), seed):
        assert spelled.rstrip(b"=") not in wire


def test_a_lost_answer_is_asked_for_again_with_the_same_key(gateway: Served, tmp_path: Path) -> None:
    token, host = new_token(gateway), tmp_path / "host"
    with between(gateway, answer=lambda _: b"") as way:
        assert "run the same command again" in refusal(token, host, way.url)
    used = tls_name(gateway)
    key = (host / "identity" / joining.KEY_FILE).read_text()
    assert (host / "identity" / joining.KEY_FILE).stat().st_mode & 0o777 == 0o600
    found = join(token, host)
    assert (found.identity.name, found.identity.key.reveal()) == (used, key)


def test_a_token_lets_in_one_key_only(gateway: Served, tmp_path: Path) -> None:
    token = new_token(gateway)
    first = join(token, tmp_path / "host")
    for _ in range(2):
        words = refusal(token, tmp_path / "thief")
        assert "was used already, with another key" in words and "`wirelane-gateway node token fra1`" in words
        assert "This host" not in words
    with pytest.raises(EnrolmentFailed, match="This host was made node fra1 before"):
        join(token, tmp_path / "host")
    assert tls_name(gateway) == first.identity.name


def test_of_two_hosts_at_once_one_gets_in(gateway: Served, tmp_path: Path) -> None:
    token = new_token(gateway)
    won: list[Enrolled] = []
    lost: list[str] = []

    def one(host: Path) -> None:
        try:
            won.append(join(token, host))
        except EnrolmentFailed as error:
            lost.append(str(error))

    threads = [threading.Thread(target=one, args=(tmp_path / str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(won), len(lost)) == (1, 3)
    assert all("used already" in words for words in lost)
    assert tls_name(gateway) == won[0].identity.name


def test_the_old_identity_is_the_nodes_until_a_new_token_is_used(gateway: Served, tmp_path: Path) -> None:
    first = join(new_token(gateway), tmp_path / "host")
    token = new_token(gateway)
    assert tls_name(gateway) == first.identity.name
    second = join(token, tmp_path / "other")
    assert second.identity.name != first.identity.name
    assert tls_name(gateway) == second.identity.name


def test_each_enrolment_is_one_line_of_the_audit(
    gateway: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway.http")
    token = new_token(gateway)
    join(token, tmp_path / "host")
    refusal(token, tmp_path / "thief")
    deadline = time.monotonic() + 5  # a line is written once its answer has left
    while len(lines := [line for line in caplog.messages if "path=/enrol" in line]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert lines[0].startswith("event=change method=POST path=/enrol status=200")
    assert "node=fra1 outcome='success'" in lines[0]
    assert lines[1].startswith("event=refused") and "reason=used-token" in lines[1]
    assert token not in caplog.text and JoinToken.parse(token).seed.hex() not in caplog.text


def test_the_command_says_what_came_of_it(
    gateway: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(f'identity = "{tmp_path}/identity"\n')
    token = new_token(gateway)
    for typed, status, words in (
        (token[:-1], 1, "wirelane-agent: this join token is cut off or misspelled: copy it again, whole\n"),
        (
            token,
            0,
            f'next: listen_fleet = "0.0.0.0:7443" in {config}, then restart the agent\ngateways will call it at',
        ),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{typed}\n"))
        assert agent_main(["--config", str(config), "enrol", "--token-file", "-"]) == status
        said = "".join(capfd.readouterr())
        assert words in said and token not in said and JoinToken.parse(token).seed.hex() not in said
    assert load(tmp_path / "identity") is not None
    assert agent_main(["--config", str(config), "enrol", "--token-file", str(tmp_path / "none")]) == 1
    assert "No such file" in capfd.readouterr().err


# -- tokens that are wrong --------------------------------------------------------------------------------------------


def test_a_token_that_is_cut_off_or_misspelled_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    token = token_text(NODE, os.urandom(32), os.urandom(32), "http://127.0.0.1:1")
    for cut in range(len("wl1."), len(token)):
        assert "copy it again, whole" in refusal(token[:cut], tmp_path / "host")
    swapped = token[:30] + ("a" if token[30] != "a" else "b") + token[31:]
    assert "copy it again, whole" in refusal(swapped, tmp_path / "host")
    assert not (tmp_path / "host" / "identity").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no join token"),
        ("  \n", "there is no join token"),
        ("0f" * 40, "this is no join token: one begins with wl1."),
        ("wl2.fra1.x.y.z.abcdef", "another version"),
        ("wl1....", "copy it again"),
        ("wl1.fra1.ä.b.c.d", "copy it again"),
    ],
)
def test_what_is_no_token_is_told(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(text, tmp_path / "host")


def test_a_token_of_another_installation_is_unknown(gateway: Served, tmp_path: Path) -> None:
    foreign = token_text(NODE, os.urandom(32), os.urandom(32), gateway.url)
    assert "the gateway says: This join token is unknown" in refusal(foreign, tmp_path / "host")


def test_an_expired_token_is_told_with_how_long_ago_and_the_cure(gateway: Served, tmp_path: Path) -> None:
    words = refusal(new_token(gateway, seconds=-90), tmp_path / "host")
    assert "This join token expired 9" in words and "seconds ago" in words and "node token fra1" in words
    assert tls_name(gateway) == ""


def test_a_used_token_expires_too(gateway: Served, tmp_path: Path) -> None:
    token = new_token(gateway, seconds=2)
    with between(gateway, answer=lambda _: b"") as way:
        refusal(token, tmp_path / "host", way.url)
    time.sleep(3)
    assert "expired" in refusal(token, tmp_path / "host")


def test_a_newer_token_takes_the_place_of_the_older_one(gateway: Served, tmp_path: Path) -> None:
    older, newer = new_token(gateway), new_token(gateway)
    assert "replaced by a newer one" in refusal(older, tmp_path / "host")
    join(newer, tmp_path / "host")


def test_the_token_of_a_removed_node_is_unknown(gateway: Served, tmp_path: Path) -> None:
    token = new_token(gateway)
    gateway.do(direct.remove_node(gateway.product.store, NODE))
    assert "its node was removed" in refusal(token, tmp_path / "host")


def test_a_node_on_a_socket_needs_none(gateway: Served) -> None:
    with pytest.raises(Conflict, match="it needs no certificate"):
        gateway.do(gateway.product.enrolment.new_token("local", HOUR))


# -- somebody else answers, or stands between -------------------------------------------------------------------------


def test_a_gateway_with_another_authority_is_not_believed(gateway: Served, sqlite_url: str, tmp_path: Path) -> None:
    """It knows the token's public half, from a stolen database, and lets in whoever comes."""
    token = new_token(gateway)
    parsed = JoinToken.parse(token)
    public = Ed25519PrivateKey.from_private_bytes(parsed.seed).public_key().public_bytes_raw()

    async def copied(store: Any) -> None:
        node = await direct.add_node(store, NODE, ADDRESS)
        trust = await store.change(lambda tx: authorities.ensured(tx, datetime.now(UTC)))
        row = Row(node.id, NODE, public, trust.signs.pin, "x.node.wirelane", int(time.time()) + HOUR)
        await store.change(lambda tx: join_tokens.put(tx, row))

    other = f"{sqlite_url.removesuffix('.db')}-other.db"
    Path(other.removeprefix("sqlite:///")).write_bytes(Path(sqlite_url.removeprefix("sqlite:///")).read_bytes())
    with served(other) as impostor:
        impostor.do(copied(impostor.product.store))
        words = refusal(token, tmp_path / "host", impostor.url)
    assert "not the gateway that made this token, but one with another authority" in words
    join(token, tmp_path / "host")


def changed(work: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """The body of an answer whose signed text was changed."""

    def change(body: bytes) -> bytes:
        envelope = json.loads(body)
        reply = json.loads(envelope["msg"]["reply"])
        work(reply)
        envelope["msg"]["reply"] = json.dumps(reply)
        return json.dumps(envelope).encode()

    return change


FOREIGN = new_authority(datetime.now(UTC))


@pytest.mark.parametrize(
    "work",
    [
        lambda reply: reply["settings"].update(address="203.0.113.66:7443"),
        lambda reply: reply["authorities"].append(FOREIGN.certificate.decode()),
        lambda reply: reply.update(time=reply["time"] + 1),
        lambda reply: reply.update(certificate=FOREIGN.certificate.decode()),
    ],
    ids=["settings", "second-authority", "time", "certificate"],
)
def test_an_answer_that_was_changed_is_not_believed(
    gateway: Served, tmp_path: Path, work: Callable[[dict[str, Any]], None]
) -> None:
    token = new_token(gateway)
    with between(gateway, answer=changed(work)) as way:
        assert "the answer was changed on its way" in refusal(token, tmp_path / "host", way.url)
    join(token, tmp_path / "host")


def test_an_old_answer_is_not_believed_again(gateway: Served, tmp_path: Path) -> None:
    token, kept = new_token(gateway), list[bytes]()

    def keep(body: bytes) -> bytes:
        kept.append(body)
        return b""

    with between(gateway, answer=keep) as way:
        refusal(token, tmp_path / "host", way.url)
    with between(gateway, answer=lambda _: kept[0]) as way:
        assert "is another request's" in refusal(token, tmp_path / "host", way.url)


def test_a_request_whose_key_was_swapped_is_refused(gateway: Served, tmp_path: Path) -> None:
    token = new_token(gateway)

    def swap(body: bytes) -> bytes:
        return json.dumps({**json.loads(body), "key": spelled(ec.generate_private_key(ec.SECP256R1()))}).encode()

    with between(gateway, request=swap) as way:
        assert "not made with that join token, or changed on its way" in refusal(token, tmp_path / "host", way.url)
    assert tls_name(gateway) == ""
    join(token, tmp_path / "host")


def spelled(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(der).decode().rstrip("=")


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 4096), ec.generate_private_key(ec.SECP384R1())],
    ids=["rsa", "p384"],
)
def test_a_key_of_another_kind_is_refused_and_binds_nothing(
    gateway: Served, tmp_path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    token = JoinToken.parse(new_token(gateway))
    signing, nonce = Ed25519PrivateKey.from_private_bytes(token.seed), os.urandom(16)
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    proof = signing.sign(enrol.signed(enrol.REQUEST, NODE, der, nonce))
    fields = {"token": signing.public_key().public_bytes_raw(), "key": der, "nonce": nonce, "proof": proof}
    body = {name: base64.urlsafe_b64encode(raw).decode() for name, raw in fields.items()}
    answer = httpx.post(f"{gateway.url}/enrol", json=body)
    assert answer.status_code == 403
    assert answer.json()["error"] == "The key of the request must be ECDSA P-256: nothing else is signed"
    assert tls_name(gateway) == ""


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "words"), [(3, "3.0 days ahead of"), (-3, "3.0 days behind"), (-400, "400.0 days behind")]
)
def test_a_clock_that_is_days_off_is_told_and_the_token_still_works(
    gateway: Served, tmp_path: Path, days: int, words: str
) -> None:
    token = new_token(gateway)
    said = refusal(token, tmp_path / "host", ahead=timedelta(days=days))
    assert f"this host's clock is {words} the gateway's" in said and "run the same command again" in said
    join(token, tmp_path / "host")


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_a_day_off_is_measured_and_does_no_harm(gateway: Served, tmp_path: Path, days: int) -> None:
    found = join(new_token(gateway), tmp_path / "host", ahead=timedelta(days=days))
    assert abs(found.ahead - days * 86_400) < 60


# -- the way to the gateway -------------------------------------------------------------------------------------------


def test_a_url_is_needed_and_checked(gateway: Served, tmp_path: Path) -> None:
    token = new_token(gateway, url="")
    assert "give its URL with --gateway" in refusal(token, tmp_path / "host")
    for url in ("gateway:8080", "ftp://x", "http://", "http://x:99999", "http://u:p@x/", "http://x/?a=b"):
        assert "must be a gateway's URL" in refusal(token, tmp_path / "host", url)
    join(token, tmp_path / "host", f"{gateway.url}/")


def test_where_no_gateway_is_is_told(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        token = token_text(NODE, os.urandom(32), os.urandom(32), url)
        assert f"{url} cannot be reached" in refusal(token, tmp_path / "host")
    assert "cannot be reached" in refusal(token, tmp_path / "host", "http://nowhere.invalid")


NO_REPLY = json.dumps({"status": "success", "error": "", "msg": {"reply": 1, "proof": 1}}).encode()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            b"HTTP/1.1 301 Moved\r\nLocation: https://a.example/enrol\r\nContent-Length: 0\r\n\r\n",
            "sends on to https://a.example: give that URL with --gateway",
        ),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\n<h1>", "answered 502, and not as a gateway does"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not the answer of a gateway"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + NO_REPLY, "not the answer of a gateway"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "gave no whole HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + b"{" * 999_999, "gave no whole HTTP answer"),
        (b"", "gave no whole HTTP answer"),
    ],
)
def test_what_is_no_gateway_is_told(tmp_path: Path, said: bytes, words: str) -> None:
    with answering(said) as url:
        token = token_text(NODE, os.urandom(32), os.urandom(32), url)
        assert words in refusal(token, tmp_path / "host")


def test_who_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ASK_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        token = token_text(NODE, os.urandom(32), os.urandom(32), f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert "did not answer within 1 seconds" in refusal(token, tmp_path / "host")
        assert time.monotonic() - started < 5


def test_a_tls_certificate_that_does_not_hold_is_told(sqlite_url: str, tmp_path: Path) -> None:
    from gateway.http.certificate import Certificate

    self_signed(tmp_path / "c.pem", tmp_path / "k.pem")
    with served(sqlite_url, certificate=Certificate(str(tmp_path / "c.pem"), str(tmp_path / "k.pem"))) as gateway:
        gateway.do(direct.add_node(gateway.product.store, NODE, ADDRESS))
        words = refusal(new_token(gateway), tmp_path / "host")
    assert "its certificate does not hold here" in words and "plain http:// is as safe" in words


# -- what strangers can do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"{}", b"[" * 4000, b'{"token": 1}', b'{"token": "' + b"A" * 43 + b'", "key": "*"}']
)
def test_nonsense_is_answered_with_what_is_right(gateway: Served, body: bytes) -> None:
    answer = httpx.post(f"{gateway.url}/enrol", content=body)
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "Malformed request (only a JSON object with token, key, nonce, proof)",
        "msg": "",
        "status": "error",
    }


def test_the_door_takes_no_more_than_a_request(gateway: Served) -> None:
    assert httpx.post(f"{gateway.url}/enrol", content=b"x" * 4097).status_code == 413
    assert httpx.get(f"{gateway.url}/enrol").status_code == 405


def test_who_is_refused_again_and_again_waits(gateway: Served, tmp_path: Path) -> None:
    foreign = token_text(NODE, os.urandom(32), os.urandom(32), gateway.url)
    times = []
    for _ in range(6):
        started = time.monotonic()
        refusal(foreign, tmp_path / "host")
        times.append(time.monotonic() - started)
    assert times[5] - min(times[:3]) > 0.3
    # Who has a right token does not wait behind them.
    started = time.monotonic()
    join(new_token(gateway), tmp_path / "host")
    assert time.monotonic() - started < 1.0, "the next refusal would wait 1.6 s"


# -- a man in the middle ----------------------------------------------------------------------------------------------


class Between:
    """A proxy that hears everything and changes what it likes."""

    def __init__(self, gateway: str, request: Callable[[bytes], bytes], answer: Callable[[bytes], bytes]) -> None:
        self._gateway, self._request, self._answer = gateway, request, answer
        self.heard: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(
            next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[1]
        )
        body = self._request(await reader.readexactly(length))
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{self._gateway}/enrol", content=body)
        self.heard += [body, answer.content]
        if content := self._answer(answer.content):
            writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (answer.status_code, len(content)) + content)
            await writer.drain()
        writer.close()


@contextmanager
def between(
    gateway: Served,
    request: Callable[[bytes], bytes] = lambda body: body,
    answer: Callable[[bytes], bytes] = lambda body: body,
) -> Iterator[Between]:
    way = Between(gateway.url, request, answer)
    with listening(way.serve) as url:
        way.url = url
        yield way


@contextmanager
def answering(said: bytes) -> Iterator[str]:
    """Somebody who says always the same."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(said)
        writer.close()

    with listening(serve) as url:
        yield url


@contextmanager
def listening(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> Iterator[str]:
    ready, stop, found = threading.Event(), threading.Event(), list[int]()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            found.append(server.sockets[0].getsockname()[1])
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield f"http://127.0.0.1:{found[0]}"
    finally:
        stop.set()
        thread.join(10)
