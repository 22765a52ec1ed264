"""The wire's messages to and from our values. The only place in the gateway that knows both; no I/O.

What the wire cannot say (a day 20260230, a chunk of a snapshot without its header) raises ValueError; the client
turns that into "the agent answered nonsense".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from ipaddress import IPv4Network

from gateway.live import HeldObject, LiveRule, LiveServer, Session
from gateway.model import (
    Account,
    AgentStatus,
    Applied,
    DayTotal,
    Failure,
    LiveAccount,
    Look,
    MarkCounters,
    Origin,
    Patch,
    PeerState,
    Responder,
    Server,
    Snapshot,
    Standing,
)
from protos.agent.v1 import agent_pb2 as pb

CHUNK = 500  # accounts in one message: at most ~250 bytes each, far below gRPC's default limit of 4 MB
SERVERS = 100  # the same of servers: with our own certificates and the longest filter some 17 kB each

MOST_FAILURES = 50_000  # in an answer: a full node's accounts and servers
MOST_OTHERS = 1000  # warnings, networks
LONGEST_TEXT = 1000  # characters of what an agent says to people
LONGEST_EPOCH = 64
MOST_BYTES_A_DAY = 1 << 50  # of an account: 100 Gbit/s all day
LARGEST_ID = (1 << 63) - 1

MTUS = range(1280, 9101)  # bytes, of a tunnel; anything else would end in customers' files
SECRETS = ("private_key", "preshared_key", "password")  # no node tells them again, nor are they shown
OUTCOMES = {pb.ApplyReply.APPLIED: "applied", pb.ApplyReply.PENDING: "pending", pb.ApplyReply.FAILED: "failed"}


def _server(server: Server) -> pb.Server:
    return pb.Server(
        name=server.name,
        interface=server.interface,
        private_key=server.private_key.reveal(),
        listen_port=server.listen_port,
        address=str(server.address),
        mtu=server.mtu,
        internal_traffic=server.internal_traffic,
        external_ip=str(server.external_ip) if server.external_ip else "",
        reach=server.reach,
        address_ipv6=str(server.address_ipv6 or ""),
        nat_ipv6=server.nat_ipv6,
        ikev2=_ikev2(server, server.responder) if server.responder else None,
        filter=[_filter_rule(*one) for one in server.filter],
    )


def _filter_rule(
    _: str, accepts: bool, source: str, destination: str, protocol: str, source_port: int, destination_port: int
) -> pb.FilterRule:
    return pb.FilterRule(
        accept=accepts,
        source=source,
        destination=destination,
        protocol=protocol,
        source_port=source_port,
        destination_port=destination_port,
    )


def _ikev2(server: Server, shown: Responder) -> pb.Ikev2:
    return pb.Ikev2(
        certificate=shown.certificate,
        private_key=shown.private_key.reveal(),
        authority=shown.authority,
        identity=shown.identity,
        dns=[str(address) for address in (server.dns_1, server.dns_2) if address],
        dns_ipv6=[str(one) for one in (server.dns_1_ipv6, server.dns_2_ipv6) if one and server.address_ipv6],
    )


def _account(account: Account) -> pb.Account:
    return pb.Account(
        id=account.id,
        name=account.name,
        server=account.server,
        address=str(account.address),
        public_key=account.public_key,
        mark=account.mark,
        download=account.download,
        upload=account.upload,
        enabled=account.enabled,
        preshared_key=account.preshared_key.reveal(),
        address_ipv6=str(account.address_ipv6 or ""),
        username=account.username if account.password else "",
        password=account.password.reveal(),
        ports=(pb.PortForward(protocol=name, port=port, to_port=to_port) for name, port, to_port in account.ports),
    )


def patch_request(patch: Patch, settle_ms: int) -> pb.PatchRequest:
    return pb.PatchRequest(
        epoch=patch.epoch,
        base_revision=patch.base,
        revision=patch.revision,
        put_servers=[_server(server) for server in patch.put_servers],
        remove_servers=patch.remove_servers,
        put_accounts=[_account(account) for account in patch.put_accounts],
        remove_accounts=patch.remove_accounts,
        settle_ms=settle_ms,
        time_zone=patch.time_zone,
        origin=_origin(patch.origin),
        base_mark=patch.base_mark,
    )


def _origin(origin: Origin) -> pb.Origin:
    return pb.Origin(identity=origin.identity, mark=origin.mark, node=origin.node)


def _origin_in(origin: pb.Origin) -> Origin:
    return Origin(origin.identity, origin.mark, origin.node)


def snapshot_chunks(snapshot: Snapshot, settle_ms: int) -> Iterator[pb.SnapshotChunk]:
    """The header, then servers, then accounts, so many at a time."""
    yield pb.SnapshotChunk(
        header=pb.SnapshotHeader(
            revision=snapshot.revision,
            server_count=len(snapshot.servers),
            account_count=len(snapshot.accounts),
            settle_ms=settle_ms,
            time_zone=snapshot.time_zone,
            origin=_origin(snapshot.origin),
            replaces=_origin(snapshot.replaces.origin) if snapshot.replaces else None,
            replaces_revision=snapshot.replaces.revision if snapshot.replaces else 0,
        )
    )
    for start in range(0, len(snapshot.servers), SERVERS):
        yield pb.SnapshotChunk(servers=[_server(server) for server in snapshot.servers[start : start + SERVERS]])
    for start in range(0, len(snapshot.accounts), CHUNK):
        yield pb.SnapshotChunk(accounts=[_account(account) for account in snapshot.accounts[start : start + CHUNK]])


def objects_of(snapshot: Snapshot) -> Iterator[HeldObject]:
    """What a node holds that took this snapshot."""
    for chunk in snapshot_chunks(snapshot, 0):
        yield from held_objects(chunk)


def held_objects(chunk: pb.SnapshotChunk) -> Iterator[HeldObject]:
    for server in chunk.servers:
        yield HeldObject("server", server.name, server.name, _fields(server))
    for account in chunk.accounts:
        yield HeldObject("account", str(account.id), account.name, _fields(account))


def _fields(message: pb.Server | pb.Account) -> dict[str, str]:
    names = (field.name for field in message.DESCRIPTOR.fields)
    told = {name: str(getattr(message, name)) for name in names if name not in ("id", "ikev2", "filter", *SECRETS)}
    if not isinstance(message, pb.Server):
        return told
    return told | {"ikev2": message.ikev2.identity, "filter": "; ".join(map(_said, message.filter))}


def _said(one: pb.FilterRule) -> str:
    ends = f"{one.source} {one.source_port} to {one.destination} {one.destination_port}"
    return f"{'ACCEPT' if one.accept else 'DROP'} {one.protocol} {ends}"


def _failure(failure: pb.Failure) -> Failure:
    return Failure(failure.account_id, failure.subject[:LONGEST_TEXT], failure.reason[:LONGEST_TEXT])


def _failures(failures: Sequence[pb.Failure]) -> tuple[Failure, ...]:
    return tuple(_failure(failure) for failure in failures[:MOST_FAILURES])


def epoch_in(text: str) -> str:
    """Of a state file: random, and short."""
    if len(text) > LONGEST_EPOCH:
        raise ValueError(f"an epoch of {len(text)} characters")
    return text


def agent_status(reply: pb.StatusReply, at: float) -> AgentStatus:
    """`at`: Unix seconds, by our own clock when the agent wrote it."""
    return AgentStatus(
        epoch=epoch_in(reply.epoch),
        revision=reply.revision,
        applied_revision=reply.applied_revision,
        needs_snapshot=reply.needs_snapshot,
        failures=_failures(reply.failures),
        drift_count=reply.drift_count,
        last_sample_time=reply.last_sample_time,
        last_resync_time=reply.last_resync_time,
        version=reply.version,
        wireguard=reply.wireguard,
        uplink=reply.uplink,
        problem=reply.problem[:LONGEST_TEXT],
        warnings=tuple(text[:LONGEST_TEXT] for text in reply.warnings[:MOST_OTHERS]),
        networks=tuple((IPv4Network(one.network), one.interface) for one in reply.networks[:MOST_OTHERS]),
        listening=frozenset((one.protocol[:3], one.port) for one in reply.listening[:MOST_OTHERS]),
        marks=reply.marks,
        time_zone=reply.time_zone,
        tunnel_mtu=reply.tunnel_mtu if reply.tunnel_mtu in MTUS else 0,
        refused_connections=reply.refused_connections,
        asks=reply.asks,
        ikev2=(reply.ikev2[:LONGEST_EPOCH], reply.ikev2_pid),
        origin=_origin_in(reply.origin),
        accounts=reply.accounts,
        servers=reply.servers,
        clock_offset=reply.time_ms / 1000 - at if reply.time_ms else None,
        counted_download=reply.counted_download_bytes,
        counted_upload=reply.counted_upload_bytes,
        certificate_expires=reply.certificate_expires,
        standing=_standing(reply.standing) if reply.HasField("standing") else None,
    )


def _standing(found: pb.Standing) -> Standing:
    return Standing(found.authority, frozenset(found.authorities))


def applied(reply: pb.ApplyReply) -> Applied:
    if reply.outcome not in OUTCOMES:
        raise ValueError(f"unknown outcome {reply.outcome}")
    failures, epoch = _failures(reply.failures), epoch_in(reply.epoch)
    return Applied(OUTCOMES[reply.outcome], epoch, reply.revision, failures, _origin_in(reply.origin))


def day_total(total: pb.DayTotal) -> DayTotal:
    if total.account_id > LARGEST_ID or max(total.download_bytes, total.upload_bytes) > MOST_BYTES_A_DAY:
        raise ValueError(f"{max(total.download_bytes, total.upload_bytes)} bytes on one day, for {total.account_id}")
    day = date(total.day // 10000, total.day // 100 % 100, total.day % 100)
    return DayTotal(total.account_id, day, total.download_bytes, total.upload_bytes)


def peer_state(peer: pb.Peer) -> PeerState:
    return PeerState(
        account_id=peer.account_id,
        public_key=peer.public_key,
        address=peer.address,
        endpoint=peer.endpoint,
        keepalive=peer.keepalive,
        latest_handshake=peer.latest_handshake,
        rx_bytes=peer.rx_bytes,
        tx_bytes=peer.tx_bytes,
    )


def session(found: pb.Session) -> Session:
    return Session(found.account_id, found.endpoint[:LONGEST_EPOCH], found.established)


def _marks(marks: pb.MarkCounters) -> MarkCounters:
    return MarkCounters(
        mark=marks.mark,
        download_packets=marks.download_packets,
        download_bytes=marks.download_bytes,
        upload_packets=marks.upload_packets,
        upload_bytes=marks.upload_bytes,
    )


LOOKS = {None: pb.LOOK_EVERYTHING, Look.PEER: pb.LOOK_PEER, Look.MARKS: pb.LOOK_MARKS, Look.CLASSES: pb.LOOK_CLASSES}


def live_account(reply: pb.InspectReply) -> LiveAccount:
    return LiveAccount(
        peer=peer_state(reply.peer) if reply.HasField("peer") else None,
        marks=_marks(reply.marks) if reply.HasField("marks") else None,
        uplink=reply.uplink,
        interface=reply.interface,
        upload_class=reply.upload_class.text if reply.HasField("upload_class") else None,
        download_class=reply.download_class.text if reply.HasField("download_class") else None,
        marks_ipv6=_marks(reply.marks_ipv6) if reply.HasField("marks_ipv6") else None,
    )


def live_server(reply: pb.InspectServerReply) -> LiveServer:
    roots = [getattr(reply, field) for field in ("uplink_root", "link_root") if reply.HasField(field)]
    return LiveServer(
        nat=tuple(map(_rule, reply.nat)),
        forward=tuple(map(_rule, reply.forward)),
        roots=tuple((root.device, root.text) for root in roots),
    )


def _rule(rule: pb.Rule) -> LiveRule:
    counted = rule.HasField("packets") and rule.HasField("bytes")
    numbers = (rule.packets, rule.bytes) if counted else (None, None)
    return LiveRule(rule.source, rule.destination, rule.target, *numbers)
