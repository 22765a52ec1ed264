"""Values in v1's spelling: the objects and texts that go into `msg`. Pure. Called by the path groups.

v1 writes most numbers as texts and a few as integers; each is as its documents show it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from zoneinfo import ZoneInfo

from gateway.certificates import PARTS
from gateway.http.configuration import unreadable
from gateway.http.v1.calls import BOOLEAN, INTEGER, TEXT, record, shown, texts
from gateway.live import LiveRule, Session
from gateway.model import Account, DayUsage, MarkCounters, PeerState, Server
from gateway.store.ikev2 import Ikev2

ANYWHERE = "0.0.0.0/0"
ACCOUNT = texts(
    *("allowed_IPs", "b_download", "b_upload", "mangle", "name", "password", "private_key", "public_key"),
    *("status", "username", "wg_name"),
    sometimes=("has_preshared_key", "problem"),
)
SERVER = record(
    {
        **dict.fromkeys(("address", "b_download", "b_upload", "dns_1", "dns_2", "external_ip"), TEXT),
        "ikev2": BOOLEAN,
        "interface_name": TEXT,
        "internal_traffic": BOOLEAN,
        "keep_alive": INTEGER,
        **dict.fromkeys(("listen_port", "name", "private_key", "public_key"), TEXT),
    },
    {"problem": TEXT, **dict.fromkeys(("address_ipv6", "dns_1_ipv6", "dns_2_ipv6"), TEXT), "nat_ipv6": BOOLEAN},
)
DUMP = texts("allowed_ips", "endpoint", "keepalive", "latest_handshake", "transfer_rx", "transfer_tx")
DAY = record({"account": TEXT, "date": TEXT, "traffic_download": INTEGER, "traffic_upload": INTEGER})
WHO = dict.fromkeys(("name", "username", "wg_name", "status", "allowed_IPs", "b_download", "b_upload"), TEXT)
ONLINE = record(
    {
        **WHO,
        "endpoint": TEXT,
        "latest_handshake": shown(TEXT, "2026-11-28 02:59:23"),
        **dict.fromkeys(("transfer_rx", "transfer_tx"), TEXT),
    }
)
IKEV2_ONLINE = record({**WHO, "endpoint": shown(TEXT, "198.51.100.7"), "uptime": shown(TEXT, " 11 seconds ago")})


def account_object(account: Account) -> dict[str, str]:
    return {
        "allowed_IPs": str(account.address),
        "b_download": str(account.download),
        "b_upload": str(account.upload),
        "mangle": str(account.mark),
        "name": account.name,
        "password": account.password.reveal(),
        "private_key": account.private_key.reveal(),
        "public_key": account.public_key,
        "status": _status(account),
        "username": account.username,
        "wg_name": account.server,
        **_preshared(account),
        **_problem(account),
    }


def _preshared(account: Account) -> dict[str, str]:
    """That there is one, and never which: only the configuration has it. Not under the name of the field that sets it,
    for a client that sends back what it was given would ask for another one."""
    return {"has_preshared_key": "1"} if account.preshared_key else {}


def _problem(of: Account | Server) -> dict[str, str]:
    """v1 has no key for it, and its clients do not mind one more."""
    return {"problem": unreadable(of)} if of.unreadable else {}


def server_object(server: Server) -> dict[str, str | bool | int]:
    return {
        "address": str(server.address),
        "b_download": str(server.download),
        "b_upload": str(server.upload),
        "dns_1": _text(server.dns_1),
        "dns_2": _text(server.dns_2),
        "external_ip": _text(server.external_ip),
        "ikev2": server.ikev2,
        "interface_name": server.interface,
        "internal_traffic": server.internal_traffic,
        "keep_alive": server.keep_alive,
        "listen_port": str(server.listen_port),
        "name": server.name,
        "private_key": server.private_key.reveal(),
        "public_key": server.public_key,
        **_ipv6(server),
        **_problem(server),
    }


def _ipv6(server: Server) -> dict[str, str | bool]:
    """Keys that v1 has not, of servers that have it: what was generated must be readable somewhere."""
    if server.address_ipv6 is None:
        return {}
    return {
        "address_ipv6": str(server.address_ipv6),
        "dns_1_ipv6": _text(server.dns_1_ipv6),
        "dns_2_ipv6": _text(server.dns_2_ipv6),
        "nat_ipv6": server.nat_ipv6,
    }


def dump_object(account: Account, peer: PeerState | None) -> dict[str, str]:
    """What `wg show dump` says of the peer; a disabled account has none: the same shape with the empty values."""
    peer = peer or PeerState(account_id=account.id, public_key="", address=str(account.address))
    return {
        "allowed_ips": f"{account.address}/32",
        "endpoint": peer.endpoint or "(none)",
        "keepalive": str(peer.keepalive) if peer.keepalive else "off",
        "latest_handshake": str(peer.latest_handshake),
        "transfer_rx": str(peer.rx_bytes),
        "transfer_tx": str(peer.tx_bytes),
    }


def day_objects(account_name: str, days: Iterable[DayUsage]) -> list[dict[str, str | int]]:
    return [
        {
            "account": account_name,
            "date": usage.day.isoformat(),
            "traffic_download": usage.download,
            "traffic_upload": usage.upload,
        }
        for usage in days
    ]


def online_object(account: Account, peer: PeerState, zone: ZoneInfo) -> dict[str, str]:
    return {
        **_who(account),
        "endpoint": peer.endpoint or "(none)",
        "latest_handshake": datetime.fromtimestamp(peer.latest_handshake, zone).strftime("%Y-%m-%d %H:%M:%S"),
        "transfer_rx": str(peer.rx_bytes),
        "transfer_tx": str(peer.tx_bytes),
    }


def ikev2_online(account: Account, session: Session, uptime: str) -> dict[str, str]:
    return {**_who(account), "endpoint": session.endpoint, "uptime": uptime}


def _who(account: Account) -> dict[str, str]:
    """Of those who are online."""
    return {
        "name": account.name,
        "username": account.username,
        "wg_name": account.server,
        "status": _status(account),
        "allowed_IPs": str(account.address),
        "b_download": str(account.download),
        "b_upload": str(account.upload),
    }


def ikev2_object(one: Ikev2) -> dict[str, str | bool]:
    return {
        "enabled": one.enabled,
        **{f"ca_{part}": one.ca_names.get(part, "") for part in PARTS},
        **{f"server_{part}": one.server_names.get(part, "") for part in PARTS},
        "server_domain": one.domain,
        "server_ip": one.ip,
        "server_ipv6": one.ipv6,
        "ca_cert": one.authority.certificate,
        "server_cert": one.server.certificate,
    }


def mark_lines(account: Account, marks: MarkCounters, ipv6: MarkCounters | None = None) -> str:
    """The two mangle rules: towards the account, then from it. Behind them those of its second address."""
    second = _mark_lines(account.address_ipv6, "::/0", ipv6) if ipv6 else ""
    return _mark_lines(account.address, ANYWHERE, marks) + second


def _mark_lines(address: object, anywhere: str, marks: MarkCounters) -> str:
    mark = f"MARK {marks.mark:#x}"
    return (
        f"{anywhere} -> {address} {mark} Pkt:{marks.download_packets} Bytes:{marks.download_bytes}\n"
        f"{address} -> {anywhere} {mark} Pkt:{marks.upload_packets} Bytes:{marks.upload_bytes}\n"
    )


def mark_rules(account: Account) -> list[dict[str, str]]:
    """In v1's spelling; its chain is where v1 had them, whatever ours is called."""
    rule = {"action": "MARK", "chain": "FORWARD", "set-mark": str(account.mark)}
    name = f"{account.name}_{account.username}"
    return [
        {**rule, "d_ip": ANYWHERE, "s_ip": str(account.address), "name": f"src_{name}"},
        {**rule, "d_ip": str(account.address), "s_ip": ANYWHERE, "name": f"dst_{name}"},
    ]


def nat_rule(server: Server) -> dict[str, str]:
    """`to-source`: "" = the uplink's own address, whatever that is."""
    return {
        "action": "SNAT" if server.external_ip else "MASQUERADE",
        "chain": "POSTROUTING",
        "d_ip": ANYWHERE,
        "s_ip": str(server.address.network),
        "name": f"{server.name}_{server.interface}",
        "to-source": _text(server.external_ip),
    }


def nat_line(rule: LiveRule) -> str:
    return f"{rule.source} -> {rule.destination} {rule.target} {_counted(rule)}\n"


def filter_line(rule: LiveRule) -> str:
    """With v1's two blanks."""
    return f"{rule.source} -> {rule.destination} {rule.target}  {_counted(rule)}\n"


def _counted(rule: LiveRule) -> str:
    """A dash: this node's rules do not count there (nftables)."""
    packets, octets = ("-" if number is None else number for number in (rule.packets, rule.octets))
    return f"Pkt:{packets} Bytes:{octets}"


def class_lines(device: str, text: str | None, why_none: str) -> str:
    """`text`: three lines of `tc -s class show`, or None: there is no class, and `why_none` says why."""
    found = f"no class ({why_none})" if text is None else text.rstrip("\n")
    return f"{device} --> {found}\n\n"


def _status(account: Account) -> str:
    return "enable" if account.enabled else "disable"


def _text(value: object | None) -> str:
    return "" if value is None else str(value)
