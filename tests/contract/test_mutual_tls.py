"""The wire to other hosts: a real agent on TCP, real TLS. Who gets in, who does not, and what is said about it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from agent.identity import Identity
from gateway.agents import Agents
from gateway.authority import Credentials
from gateway.errors import AgentUnreachable
from gateway.model import Node, Origin, Snapshot
from protos.agent.v1 import agent_pb2 as pb
from protos.agent.v1.agent_pb2_grpc import AgentStub
from tests.contract.test_agents import a_server, an_account
from tests.fakes.agent_core import AgentCore, running_core
from tests.fakes.certificates import (
    LONG_AGO,
    NAME,
    SOON,
    an_authority,
    an_identity,
    as_gateway,
    as_node,
    client_context,
    credentials,
    free_port,
    server_context,
    written,
)

OURS, OTHERS = an_authority(), an_authority()
BOTH = OURS.certificate + OTHERS.certificate
DEADLINE = 30


@dataclass(frozen=True)
class Far:
    """An agent on another host. `identity`: the folder."""

    node: Node
    core: AgentCore
    identity: Path


@asynccontextmanager
async def far_agent(folder: Path, identity: Identity) -> AsyncIterator[Far]:
    listen = f"127.0.0.1:{free_port()}"
    written(folder / "identity", identity)
    async with running_core(folder / "agent.sock", folder / "agent.db", (listen, folder / "identity")) as core:
        yield Far(Node(1, "fra", listen, tls_name=NAME), core, folder / "identity")


@asynccontextmanager
async def agents(*own: Credentials) -> AsyncIterator[Agents]:
    door = Agents(lambda: own[0] if own else None)
    try:
        yield door
    finally:
        await door.close()


class Tap:
    """Between gateway and agent; counts the connections that are open, and listens."""

    def __init__(self, node: Node) -> None:
        self.open = 0
        self.heard = bytearray()
        self._host, _, port = node.target.rpartition(":")
        self._port = int(port)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._between, "127.0.0.1", 0)
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        self.open += 1
        await asyncio.gather(self._copied(reader, back), self._copied(there, writer))
        self.open -= 1

    async def becomes(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.open != count:  # noqa: ASYNC110 - sockets tell nobody
                await asyncio.sleep(0.01)

    async def _copied(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                self.heard.extend(data)
                writer.write(data)
                await writer.drain()
        writer.close()


def run(story: Awaitable[None]) -> None:
    async def inside() -> None:
        async with asyncio.timeout(DEADLINE):
            await story
        await asyncio.sleep(0.05)  # gRPC has still something to tell this loop; closed, it would break the next test

    asyncio.run(inside())


async def reason(own: Credentials, node: Node) -> str:
    async with agents(own) as door:
        with pytest.raises(AgentUnreachable) as caught:
            await door.status(node)
        return str(caught.value)


# -- who is refused, and why: each row with its own sentence ----------------------------------------------------------

Side = Callable[[], Identity]
ROWS: dict[str, tuple[Side, Callable[[], Credentials], str]] = {
    "the node is of another authority": (
        lambda: an_identity(OTHERS, trusts=BOTH),
        lambda: credentials(OURS),
        "has a certificate of another authority: enrol it again, with a token of this gateway",
    ),
    "the node's certificate has ended": (
        lambda: an_identity(OURS, at=LONG_AGO),
        lambda: credentials(OURS),
        "ended at 20.* UTC, and here it is 20.* UTC: enrol it again, or set this host's clock",
    ),
    "the node's certificate has not begun": (
        lambda: an_identity(OURS, at=SOON),
        lambda: credentials(OURS),
        "begins at 20.* UTC, and here it is 20.* UTC: set this host's clock",
    ),
    "it is another node": (
        lambda: an_identity(OURS, "ffffffffffffffff.node.wirelane"),
        lambda: credentials(OURS),
        f"is another node, or was enrolled anew since: it shows ffffffffffffffff.node.wirelane, this node's is {NAME}",
    ),
    "the node shows a gateway's certificate": (
        lambda: as_node(credentials(OURS)),
        lambda: credentials(OURS),
        "shows a certificate that is not a node's",
    ),
    "the node trusts another authority": (
        lambda: an_identity(OURS, trusts=OTHERS.certificate),
        lambda: credentials(OURS),
        "refuses this gateway's certificate: it was enrolled with another authority, or its host's clock is off",
    ),
    "a node calls as if it were a gateway": (
        lambda: an_identity(OURS),
        lambda: as_gateway(an_identity(OURS)),
        "refuses this gateway's certificate",
    ),
    "this gateway's certificate has ended": (
        lambda: an_identity(OURS),
        lambda: credentials(OURS, at=LONG_AGO),
        "this gateway's own certificate ended at 20.* UTC, and by this host's clock it is 20.*",
    ),
    "this gateway's certificate has not begun": (
        lambda: an_identity(OURS),
        lambda: credentials(OURS, at=SOON),
        "this gateway's own certificate begins at 20.* UTC, and by this host's clock it is 20.*",
    ),
    "this gateway's certificate is of another authority": (
        lambda: an_identity(OURS),
        lambda: credentials(OTHERS, trusts=OURS.certificate),
        "this gateway's own certificate is not of its own authority",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_who_is_not_who_he_should_be_is_refused_and_the_reason_is_said(row: str, tmp_path: Path) -> None:
    identity, own, sentence = ROWS[row]

    async def story() -> None:
        async with far_agent(tmp_path, identity()) as far:
            said = await reason(own(), far.node)
        assert said.startswith("node fra: ")
        assert sentence.split(".*")[0] in said
        assert [part for part in sentence.split(".*") if part not in said] == []
        assert "Socket closed" not in said

    run(story())


CAUSES = {
    "the node's certificate has ended": "certificate",
    "it is another node": "certificate",
    "the node trusts another authority": "refused",
    "this gateway's certificate has ended": "own-certificate",
}


@pytest.mark.parametrize("row", CAUSES)
def test_a_reason_is_counted_under_a_word_of_a_few(row: str, tmp_path: Path) -> None:
    identity, own, _ = ROWS[row]

    async def story() -> None:
        async with far_agent(tmp_path, identity()) as far, agents(own()) as door:
            with pytest.raises(AgentUnreachable) as caught:
                await door.status(far.node)
            assert caught.value.cause == CAUSES[row]

    run(story())


def test_a_port_where_nobody_listens_and_a_node_without_a_certificate_have_their_words() -> None:
    async def story() -> None:
        for name, word in ((NAME, "no-handshake"), ("", "not-enrolled")):
            async with agents(credentials(OURS)) as door:
                with pytest.raises(AgentUnreachable) as caught:
                    await door.status(Node(1, "fra", f"127.0.0.1:{free_port()}", tls_name=name))
                assert caught.value.cause == word

    run(story())


def test_a_node_that_is_not_enrolled_and_a_gateway_without_a_certificate_say_so(tmp_path: Path) -> None:
    async def story() -> None:
        node = Node(1, "fra", "127.0.0.1:1")
        assert "not enrolled yet" in await reason(credentials(OURS), node)
        async with agents() as door:
            with pytest.raises(AgentUnreachable, match="no certificate to show"):
                await door.status(replace(node, tls_name=NAME))

    run(story())


@contextmanager
def answering(what: Callable[[socket.socket], None]) -> Iterator[Node]:
    """Something else than an agent listens: `what` is done with each connection."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                with suppress(OSError):
                    what(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Node(1, "fra", f"127.0.0.1:{listening.getsockname()[1]}", tls_name=NAME)
        finally:
            listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def _as_web_server(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def _with_old_tls(connection: socket.socket) -> None:
    context = server_context(an_identity(OURS))
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with context.wrap_socket(connection, server_side=True) as tls:
        tls.recv(1)


OTHER_PROGRAMS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "plain text": (_as_web_server, "does not speak TLS: it is not an agent"),
    "TLS 1.2": (_with_old_tls, "does not speak TLS 1.3"),
    "hangs up": (lambda connection: None, "ends the connection before it shows a certificate"),
}


@pytest.mark.parametrize("kind", OTHER_PROGRAMS)
def test_what_is_no_agent_is_named_as_what_it_is(kind: str) -> None:
    what, sentence = OTHER_PROGRAMS[kind]
    with answering(what) as node:
        assert sentence in asyncio.run(reason(credentials(OURS), node))


def test_where_nothing_is_that_is_said() -> None:
    own = credentials(OURS)
    closed = Node(1, "fra", f"127.0.0.1:{free_port()}", tls_name=NAME)
    assert "nothing listens at 127.0.0.1:" in asyncio.run(reason(own, closed))
    unknown = replace(closed, target="nowhere.invalid:7443")
    assert "nowhere.invalid:7443: its host name is not known here" in asyncio.run(reason(own, unknown))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection, nobody reads it
        hangs = replace(closed, target=f"127.0.0.1:{silent.getsockname()[1]}")
        assert "takes the connection and then says nothing" in asyncio.run(reason(own, hangs))


# -- past the gateway: whoever else comes to the agent's port ---------------------------------------------------------


async def called(node: Node, channel: grpc.aio.Channel) -> grpc.StatusCode:
    async with channel:
        try:
            await AgentStub(channel).Status(pb.StatusRequest(), timeout=3)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def test_a_stranger_gets_no_call_through(tmp_path: Path) -> None:
    async def story() -> None:
        async with far_agent(tmp_path, an_identity(OURS)) as far:
            name = (("grpc.ssl_target_name_override", NAME),)
            plain = grpc.aio.insecure_channel(far.node.target)
            assert await called(far.node, plain) is grpc.StatusCode.UNAVAILABLE
            nobody = grpc.ssl_channel_credentials(OURS.certificate)
            assert (
                await called(far.node, grpc.aio.secure_channel(far.node.target, nobody, options=name))
                is grpc.StatusCode.UNAVAILABLE
            )
            for own in (credentials(OTHERS, trusts=OURS.certificate), credentials(OURS, at=LONG_AGO)):
                wrong = grpc.ssl_channel_credentials(own.authorities, own.key.reveal().encode(), own.certificate)
                channel = grpc.aio.secure_channel(far.node.target, wrong, options=name)
                assert await called(far.node, channel) is grpc.StatusCode.UNAVAILABLE
            async with agents(credentials(OURS)) as door:  # and all the while, who may
                assert (await door.status(far.node)).epoch

    run(story())


def test_the_agent_speaks_tls_1_3_and_nothing_older(tmp_path: Path) -> None:
    def shaken(node: Node, newest: ssl.TLSVersion) -> str | None:
        context = client_context(credentials(OURS))
        context.maximum_version = newest
        host, _, port = node.target.rpartition(":")
        with (
            socket.create_connection((host, int(port)), 5) as raw,
            context.wrap_socket(raw, server_hostname=NAME) as tls,
        ):
            return tls.version()

    async def story() -> None:
        async with far_agent(tmp_path, an_identity(OURS)) as far:
            assert await asyncio.to_thread(shaken, far.node, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
            with pytest.raises((ssl.SSLError, OSError)):
                await asyncio.to_thread(shaken, far.node, ssl.TLSVersion.TLSv1_2)

    run(story())


def test_what_passes_on_the_wire_is_tls_1_3_and_shows_no_word_of_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with far_agent(tmp_path, an_identity(OURS)) as far, agents(credentials(OURS)) as door:
            tap = Tap(far.node)
            async with tap.listening() as between:
                epoch = (await door.status(replace(far.node, target=between))).epoch
        heard = bytes(tap.heard)
        assert bytes.fromhex("002b00020304") in heard  # supported_versions of the ServerHello: TLS 1.3
        assert epoch.encode() not in heard and b"wirelane.agent.v1.Agent" not in heard
        assert b"gateway.wirelane" not in heard  # certificates are encrypted, too
        assert NAME.encode() in heard  # the name is not: it says nothing

    run(story())


# -- a connection outlives its certificate ----------------------------------------------------------------------------


def test_a_gateway_whose_authority_is_dropped_is_refused_at_its_next_call(tmp_path: Path) -> None:
    async def story() -> None:
        identity = an_identity(OURS)
        async with far_agent(tmp_path, identity) as far, agents(credentials(OURS)) as door:
            assert (await door.status(far.node)).epoch
            written(far.identity, replace(identity, authorities=OTHERS.certificate))
            said = ""
            while not said:
                await asyncio.sleep(0.1)
                try:
                    await door.status(far.node)  # on the connection that is there
                except AgentUnreachable as error:
                    said = str(error)
            assert "your certificate is of an authority that this node does not trust" in said

    run(story())


# -- the lines ------------------------------------------------------------------------------------------------------


def test_lines_are_let_go_of_when_a_node_is_removed_or_edited_or_enrolled_anew(tmp_path: Path) -> None:
    async def story() -> None:
        async with far_agent(tmp_path, an_identity(OURS)) as far, agents(credentials(OURS)) as door:
            first, second = Tap(far.node), Tap(far.node)
            async with first.listening() as here, second.listening() as there:
                node = replace(far.node, target=here)
                await door.status(node)
                await door.held(node)
                await first.becomes(2)  # one that is quick to give up, one that is patient
                door.keep([node])
                await door.status(node)
                assert first.open == 2
                moved = replace(node, target=there)
                await door.status(moved)
                await first.becomes(0)
                door.keep([replace(moved, tls_name="another.node.wirelane")])
                await second.becomes(0)
                await door.status(moved)
                door.keep([])
                await second.becomes(0)

    run(story())


def test_who_is_back_is_told_without_anybody_asking_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with far_agent(tmp_path, an_identity(OURS)) as far, agents(credentials(OURS)) as door:
            told: asyncio.Queue[str] = asyncio.Queue()
            door.when_back(told.put_nowait)
            await far.core.stop()
            for _ in range(3):
                with pytest.raises(AgentUnreachable, match="nothing listens at"):
                    await door.status(far.node)
            assert told.empty()
            await far.core.start()
            assert await asyncio.wait_for(told.get(), 5) == "fra"
            assert (await door.status(far.node)).epoch
            assert told.empty()

    run(story())


def test_a_call_that_runs_comes_to_its_end_when_the_line_is_made_anew(tmp_path: Path) -> None:
    async def story() -> None:
        own = [credentials(OURS)]
        door = Agents(lambda: own[0])
        async with far_agent(tmp_path, an_identity(OURS)) as far:
            far.core.slow = 1.0
            sent = Snapshot(1, (a_server(),), (an_account(1),), origin=Origin("d", 1, "fra"))
            running = asyncio.create_task(door.snapshot(far.node, sent, 5000))
            await asyncio.sleep(0.3)
            own[0] = credentials(OURS)
            assert (await door.status(far.node)).applied_revision == 0
            assert not running.done()
            assert (await running).outcome == "applied"
            await door.close()

    run(story())


# -- renewal ----------------------------------------------------------------------------------------------------------


def test_both_sides_renew_under_a_storm_of_calls_and_none_fails(tmp_path: Path) -> None:
    async def story() -> None:
        own = [credentials(OURS)]
        door = Agents(lambda: own[0])
        answers = 0

        async def calls() -> None:
            nonlocal answers
            while not stop.is_set():
                await door.status(far.node)
                answers += 1

        stop = asyncio.Event()
        async with far_agent(tmp_path, an_identity(OURS)) as far:
            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(calls())
                for _ in range(3):
                    await asyncio.sleep(1.2)
                    written(far.identity, an_identity(OURS))
                    own[0] = credentials(OURS)
                stop.set()
            await door.close()
        assert answers > 100

    run(story())
