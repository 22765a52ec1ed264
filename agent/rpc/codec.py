"""Door, gRPC: the only place in the agent where a protobuf message becomes a value of ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network
from typing import TypeVar

from agent.desired import Desired, Patch, Snapshot
from agent.errors import InvalidValue
from agent.live import LiveServer, Look
from agent.model import NO_SECRET, Account, FilterRule, Ikev2, Login, PortForward, Reach, Secret, Server
from agent.objects import Counters, PeerState, SessionState, ShownRule
from agent.origin import Origin, Version
from agent.renewal import Standing
from agent.rpc import bounds
from agent.status import Failure, Outcome, Settled, Status
from agent.usage import DayTotal
from protos.agent.v1 import agent_pb2 as pb

T = TypeVar("T")

OUTCOMES = {
    Outcome.APPLIED: pb.ApplyReply.APPLIED,
    Outcome.PENDING: pb.ApplyReply.PENDING,
    Outcome.FAILED: pb.ApplyReply.FAILED,
}


def server_in(message: pb.Server) -> Server:
    """Raises InvalidValue."""
    for field in ("name", "interface", "private_key", "address", "external_ip", "address_ipv6"):
        bounds.text(f"server.{field}", getattr(message, field))
    bounds.text("server.reach", message.reach, bounds.LONGEST_REACH)
    bounds.count("server.filter", message.filter, bounds.MOST_FILTER_RULES)
    field = f"server {message.name}: "
    address = _parsed(field + "address", message.address, IPv4Interface, "like 10.0.0.1/24")
    external = _address(field + "external_ip", message.external_ip) if message.external_ip else None
    return Server(
        message.name,
        message.interface,
        Secret(message.private_key),
        message.listen_port,
        address,
        message.mtu,
        message.internal_traffic,
        external,
        Reach.parse(message.reach),
        _parsed(field + "address_ipv6", message.address_ipv6, IPv6Interface, "like fd00::1/64")
        if message.address_ipv6
        else None,
        message.nat_ipv6,
        _ikev2(message) if message.HasField("ikev2") else None,
        tuple(_filter_rule(f"server {message.name}: filter", one) for one in message.filter),
    )


def _filter_rule(field: str, one: pb.FilterRule) -> FilterRule:
    source, destination = (
        _parsed(f"{field}.{name}", bounds.text(f"{field}.{name}", getattr(one, name)), ip_network, "like 10.0.0.0/8")
        for name in ("source", "destination")
    )
    return FilterRule(one.accept, source, destination, one.protocol, one.source_port, one.destination_port)


def _ikev2(message: pb.Server) -> Ikev2:
    said, field = message.ikev2, f"server {message.name}: ikev2"
    for name in ("certificate", "private_key", "authority"):
        bounds.text(f"{field}.{name}", getattr(said, name), bounds.LONGEST_CERTIFICATES)
    dns = tuple(_address(f"{field}.dns", text) for text in said.dns)
    second = tuple(_address_ipv6(f"{field}.dns_ipv6", text) for text in said.dns_ipv6)
    return Ikev2(said.certificate, Secret(said.private_key), said.authority, said.identity, (*dns, *second))


def account_in(message: pb.Account) -> Account:
    """Raises InvalidValue."""
    for field in ("name", "server", "address", "public_key", "preshared_key", "address_ipv6", "username"):
        bounds.text(f"account.{field}", getattr(message, field))
    bounds.count("account.ports", message.ports, bounds.MOST_PORTS)
    return Account(
        message.id,
        message.name,
        message.server,
        _address(f"account {message.name}: address", message.address),
        message.public_key,
        message.mark,
        message.download,
        message.upload,
        message.enabled,
        Secret(message.preshared_key) if message.preshared_key else NO_SECRET,
        _address_ipv6(f"account {message.name}: address_ipv6", message.address_ipv6) if message.address_ipv6 else None,
        Login(message.username, Secret(message.password)) if message.username else None,
        tuple(PortForward(one.protocol, one.port, one.to_port) for one in message.ports),
    )


def _address(field: str, text: str) -> IPv4Address:
    return _parsed(field, text, IPv4Address, "an IPv4 address")


def _address_ipv6(field: str, text: str) -> IPv6Address:
    return _parsed(field, text, IPv6Address, "an IPv6 address")


def _parsed(field: str, text: str, kind: Callable[[str], T], like: str) -> T:
    try:
        return kind(text)
    except ValueError:
        raise InvalidValue(field, f"{text!r} is not {like}") from None


def patch_in(message: pb.PatchRequest) -> Patch:
    """Raises InvalidValue."""
    for field, most in (
        ("put_servers", bounds.MOST_SERVERS),
        ("remove_servers", bounds.MOST_SERVERS),
        ("put_accounts", bounds.MOST_ACCOUNTS),
        ("remove_accounts", bounds.MOST_ACCOUNTS),
    ):
        bounds.count(field, getattr(message, field), most)
    for account_id in message.remove_accounts:
        bounds.number("remove_accounts", account_id)
    for name in message.remove_servers:
        bounds.text("remove_servers", name)
    return Patch(
        bounds.text("epoch", message.epoch),
        bounds.number("base_revision", message.base_revision),
        bounds.number("revision", message.revision),
        tuple(map(server_in, message.put_servers)),
        tuple(message.remove_servers),
        tuple(map(account_in, message.put_accounts)),
        tuple(message.remove_accounts),
        bounds.text("time_zone", message.time_zone),
        origin_in(message.origin),
        bounds.number("base_mark", message.base_mark),
    )


def origin_in(message: pb.Origin) -> Origin:
    """Raises InvalidValue."""
    return Origin(
        bounds.text("origin.identity", message.identity),
        bounds.number("origin.mark", message.mark),
        bounds.text("origin.node", message.node),
    )


def origin_out(origin: Origin) -> pb.Origin:
    return pb.Origin(identity=origin.identity, mark=origin.mark, node=origin.node)


def header_in(header: pb.SnapshotHeader) -> pb.SnapshotHeader:
    """The header itself, when what it announces can be. Raises InvalidValue."""
    bounds.number("revision", header.revision)
    bounds.count("server_count", header.server_count, bounds.MOST_SERVERS)
    bounds.count("account_count", header.account_count, bounds.MOST_ACCOUNTS)
    bounds.number("replaces_revision", header.replaces_revision)
    bounds.text("time_zone", header.time_zone)
    return header


def snapshot_in(header: pb.SnapshotHeader, servers: Iterable[Server], accounts: Iterable[Account]) -> Snapshot:
    """Raises InvalidValue where something is missing, so that half a snapshot is never taken for all of it."""
    replaces = Version(header.replaces_revision, origin_in(header.replaces))
    origin = origin_in(header.origin)
    snapshot = Snapshot(header.revision, tuple(servers), tuple(accounts), header.time_zone, origin, replaces)
    for field, got, said in (
        ("server_count", len(snapshot.servers), header.server_count),
        ("account_count", len(snapshot.accounts), header.account_count),
    ):
        if got != said:
            raise InvalidValue(field, f"the header announces {said}, {got} came")
    return snapshot


def failure_out(failure: Failure) -> pb.Failure:
    return pb.Failure(account_id=failure.account_id, subject=failure.subject, reason=failure.reason)


def settled_out(settled: Settled) -> pb.ApplyReply:
    return pb.ApplyReply(
        outcome=OUTCOMES[settled.outcome],
        epoch=settled.epoch,
        revision=settled.revision,
        failures=map(failure_out, settled.failures),
        origin=origin_out(settled.origin),
    )


def status_out(status: Status, standing: Standing | None, version: str) -> pb.StatusReply:
    return pb.StatusReply(
        epoch=status.epoch,
        revision=status.revision,
        applied_revision=status.applied_revision,
        needs_snapshot=status.needs_snapshot,
        failures=map(failure_out, status.failures),
        drift_count=status.drift_count,
        drift_last_time=status.drift_last_time,
        last_sample_time=status.last_sample_time,
        last_resync_time=status.last_resync_time,
        version=version,
        wireguard=status.wireguard,
        uplink=status.uplink,
        accounts=status.accounts,
        servers=status.servers,
        problem=status.problem,
        warnings=status.warnings,
        networks=(pb.HostNetwork(network=str(one.network), interface=one.interface) for one in status.networks),
        listening=(pb.PortForward(protocol=protocol, port=port) for protocol, port in sorted(status.listening)),
        marks=status.marks,
        time_zone=status.time_zone,
        origin=origin_out(status.origin),
        tunnel_mtu=status.tunnel_mtu,
        ikev2=status.responder[0],
        ikev2_pid=status.responder[1],
        refused_connections=status.refused_connections,
        time_ms=round(status.time * 1000),
        counted_download_bytes=status.counted_download,
        counted_upload_bytes=status.counted_upload,
        certificate_expires=status.certificate_expires,
        standing=pb.Standing(authority=standing.authority, authorities=standing.authorities) if standing else None,
        asks=status.asks,
    )


def held_out(desired: Desired, chunk: int) -> Iterator[pb.SnapshotChunk]:
    """What a snapshot of it would be, but for what is secret: that is not told again."""
    servers, accounts = tuple(desired.servers.values()), tuple(desired.accounts.values())
    yield pb.SnapshotChunk(
        header=pb.SnapshotHeader(
            revision=desired.revision,
            server_count=len(servers),
            account_count=len(accounts),
            time_zone=desired.time_zone,
            origin=origin_out(desired.origin),
        )
    )
    for start in range(0, len(servers), chunk):
        yield pb.SnapshotChunk(servers=map(_server_out, servers[start : start + chunk]))
    for start in range(0, len(accounts), chunk):
        yield pb.SnapshotChunk(accounts=map(_account_out, accounts[start : start + chunk]))


def _server_out(server: Server) -> pb.Server:
    return pb.Server(
        name=server.name,
        interface=server.interface,
        listen_port=server.listen_port,
        address=str(server.address),
        mtu=server.mtu,
        internal_traffic=server.internal_traffic,
        external_ip=str(server.external_ip) if server.external_ip else "",
        reach=str(server.reach),
        address_ipv6=str(server.address_ipv6) if server.address_ipv6 else "",
        nat_ipv6=server.nat_ipv6,
        ikev2=_ikev2_out(server.ikev2) if server.ikev2 else None,
        filter=map(_filter_rule_out, server.filter),
    )


def _filter_rule_out(one: FilterRule) -> pb.FilterRule:
    return pb.FilterRule(
        accept=one.accepts,
        source=str(one.source),
        destination=str(one.destination),
        protocol=one.protocol,
        source_port=one.source_port,
        destination_port=one.destination_port,
    )


def _ikev2_out(one: Ikev2) -> pb.Ikev2:
    dns, second = ([str(address) for address in one.dns if address.version == version] for version in (4, 6))
    said = {"certificate": one.certificate, "authority": one.authority, "identity": one.identity}
    return pb.Ikev2(**said, dns=dns, dns_ipv6=second)


def _account_out(account: Account) -> pb.Account:
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
        address_ipv6=str(account.address_ipv6) if account.address_ipv6 else "",
        username=account.login.username if account.login else "",
        ports=(pb.PortForward(protocol=one.protocol, port=one.port, to_port=one.to_port) for one in account.ports),
    )


def totals_out(epoch: str, cursor: int, totals: list[DayTotal], chunk: int) -> Iterator[pb.TotalsChunk]:
    """At least one chunk; the cursor is in the last."""
    starts = range(0, len(totals), chunk) or (0,)
    for start in starts:
        yield pb.TotalsChunk(
            epoch=epoch,
            cursor=cursor if start + chunk >= len(totals) else 0,
            totals=(
                pb.DayTotal(
                    account_id=t.account_id, day=t.day, download_bytes=t.used.download, upload_bytes=t.used.upload
                )
                for t in totals[start : start + chunk]
            ),
        )


def look_in(number: int) -> Look:
    """Raises InvalidValue."""
    try:
        return Look(number)
    except ValueError:
        raise InvalidValue("look", f"{number} is none that this agent knows") from None


def peer_out(state: PeerState, account_id: int) -> pb.Peer:
    return pb.Peer(
        public_key=state.public_key,
        endpoint=state.endpoint,
        keepalive=state.keepalive,
        latest_handshake=state.latest_handshake,
        rx_bytes=state.rx_bytes,
        tx_bytes=state.tx_bytes,
        address=str(state.address) if state.address else "",
        account_id=account_id,
    )


def session_out(state: SessionState, account_id: int) -> pb.Session:
    return pb.Session(
        account_id=account_id,
        endpoint=state.endpoint,
        address=str(state.address) if state.address else "",
        established=state.established,
        rx_bytes=state.rx_bytes,
        tx_bytes=state.tx_bytes,
    )


def live_server_out(live: LiveServer) -> pb.InspectServerReply:
    def root(device: str, text: str | None) -> pb.TrafficClass | None:
        return None if text is None else pb.TrafficClass(device=device, text=text)

    return pb.InspectServerReply(
        nat=map(_rule_out, live.rules.nat),
        forward=map(_rule_out, live.rules.forward),
        uplink_root=root(live.uplink, live.uplink_root),
        link_root=root(live.interface, live.link_root),
    )


def _rule_out(rule: ShownRule) -> pb.Rule:
    return pb.Rule(
        source=rule.source, destination=rule.destination, target=rule.target, packets=rule.packets, bytes=rule.octets
    )


def counters_out(mark: int, counters: Counters) -> pb.MarkCounters:
    return pb.MarkCounters(
        mark=mark,
        download_packets=counters.download_packets,
        download_bytes=counters.download_bytes,
        upload_packets=counters.upload_packets,
        upload_bytes=counters.upload_bytes,
    )
