"""What a connection passes before HTTP: the handshake's deadline, its place among all others, and the certificate."""

from __future__ import annotations

import asyncio
import datetime
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.http import admission, door, listener
from gateway.http.certificate import Certificate
from gateway.http.listener import Listener
from gateway.http.ports import bound_socket
from tests.contract.test_listener import GET, Streams, answer_of, anyio_backend, app

pytestmark = pytest.mark.anyio

__all__ = ["anyio_backend"]


def write_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for `name` with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    built = built.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
    signed = built.not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    return certificate_file, key_file


class Served:
    def __init__(self, certificate: Certificate, server: Listener, port: int) -> None:
        self.certificate, self.server, self.port = certificate, server, port
        self._writers: list[asyncio.StreamWriter] = []

    async def plain(self, address: str = "127.0.0.1") -> Streams:
        """TCP only."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        self._writers.append(writer)
        return reader, writer

    async def secure(self, address: str = "127.0.0.1") -> Streams:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, local_addr=(address, 0), ssl_handshake_timeout=5
        )
        self._writers.append(writer)
        return reader, writer

    async def name(self) -> str:
        """Of the certificate that a new connection is shown."""
        _, writer = await self.secure()
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return str(x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Served]:
    certificate = Certificate(*map(str, write_pair(folder, "first")))
    ready = asyncio.Event()
    server = Listener(app, certificate, ready.set)
    with bound_socket("127.0.0.1", 0) as bound:
        tasks = [asyncio.create_task(server.serve([bound])), asyncio.create_task(certificate.watch())]
        await asyncio.wait_for(ready.wait(), 5)
        one = Served(certificate, server, bound.getsockname()[1])
        try:
            yield one
        finally:
            one.close()
            server.should_exit = True
            await asyncio.wait_for(tasks[0], 15)
            tasks[1].cancel()


async def until(true: Callable[[], Awaitable[bool]], what: str) -> None:
    async with asyncio.timeout(5):
        while not await true():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)
    assert what


async def test_who_never_begins_the_handshake_takes_nobody_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission, "FROM_ONE_ADDRESS", 20)
    monkeypatch.setattr(door, "HANDSHAKE_SECONDS", 0.5)
    async with served(tmp_path) as one:
        silent = [await one.plain("127.0.0.9") for _ in range(60)]
        reader, writer = await one.secure()
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200
        for reader, _ in silent:
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 3) == b""  # refused at once, or after the deadline
        reader, writer = await one.secure("127.0.0.9")
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200, "its own place is free again"
    said = [r.getMessage() for r in caplog.records if "connections-refused" in r.getMessage()]
    assert len(said) == 1 and "most=127.0.0.9" in said[0]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x00" * 600])
async def test_what_is_no_handshake_ends_at_once_and_says_nothing(
    tmp_path: Path, first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as one:
        reader, writer = await one.plain()
        writer.write(first)
        with suppress(ConnectionError):
            assert b"HTTP" not in await asyncio.wait_for(reader.read(), 5)
        assert await one.name() == "first"
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_a_renewed_certificate_is_served_without_cutting_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.http import certificate

    monkeypatch.setattr(certificate, "LOOK_SECONDS", 0.1)
    async with served(tmp_path) as one:
        reader, writer = await one.secure()
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200
        write_pair(tmp_path, "second")

        async def renewed() -> bool:
            return await one.name() == "second"

        await until(renewed, "the new one is served")
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200, "the old connection goes on"


@pytest.mark.parametrize("broken", ["another key", "half written", "empty", "gone", "garbage"])
async def test_a_broken_pair_keeps_the_old_one_and_is_said_once(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as one:
        certificate_file, key_file = tmp_path / "certificate.pem", tmp_path / "key.pem"
        old = key_file.read_bytes()
        write_pair(tmp_path, "second")
        whole = certificate_file.read_bytes()
        match broken:
            case "another key":
                key_file.write_bytes(old)
            case "half written":
                certificate_file.write_bytes(whole[: len(whole) // 2])
            case "empty":
                certificate_file.write_bytes(b"")
            case "gone":
                certificate_file.unlink()
            case "garbage":
                certificate_file.write_bytes(b"\x00\xff" * 500)
        for _ in range(3):
            one.certificate.renew()
        assert await one.name() == "first"
        said = [r.getMessage() for r in caplog.records if "certificate-kept" in r.getMessage()]
        assert len(said) == 1
        write_pair(tmp_path, "third")
        one.certificate.look_now()

        async def mended() -> bool:
            return await one.name() == "third"

        await until(mended, "the whole pair is served")


async def test_a_slow_reader_over_tls_gets_all_of_it_even_as_the_last_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "WRITE_SECONDS", 0.5)
    monkeypatch.setattr(listener, "IDLE_SECONDS", 0.5)
    async with served(tmp_path) as one:
        reader, writer = await one.secure()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = 0
        while part := await asyncio.wait_for(reader.read(4 << 20), 5):
            received += len(part)
            await asyncio.sleep(0.02 if received > 4 << 20 else 0.2)
        assert received > 64 << 20


async def test_who_reads_nothing_over_tls_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "WRITE_SECONDS", 0.3)
    async with served(tmp_path) as one:
        reader, writer = await one.secure()
        writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]

        async def gone() -> bool:
            return not one.server.server_state.connections

        await until(gone, "it is cut off")


async def test_who_never_closes_his_side_of_tls_keeps_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CLOSE_SECONDS", 0.2)
    async with served(tmp_path) as one:
        reader, writer = await one.plain()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(coming, going)
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(going.read())
                coming.write(await asyncio.wait_for(reader.read(65_536), 5))
        client.write(b"nonsense\r\n\r\n")
        writer.write(going.read())
        assert await asyncio.wait_for(reader.read(65_536), 5)

        async def gone() -> bool:
            return not one.server.server_state.connections

        await until(gone, "it is cut off")
