"""Text from outside becomes values here: form fields, and the year and month of a path. Pure.

Owns which spellings are right and the v1 text for those that are not. Never looks at what exists: whether a name is
in use or an address free is the store's promise. Called by gateway/http and by whatever else takes text from people.

Every function but those for JSON raises InvalidValue and nothing else, whatever the text. A field that is absent or
empty is None ("generate it", "leave it"), but for a yes-no field, where empty is how PHP writes "no". A field that
nobody knows is ignored, because v1 clients send extras.
Everything but a password is trimmed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Network,
    NetmaskValueError,
    ip_network,
)

from gateway import endpoint, ipv6, reach
from gateway.errors import InvalidValue
from gateway.keypair import WRONG_KEYS, decoded, spelled
from gateway.model import GENERATE, NO_SECRET, AccountEdit, NewAccount, Secret, ServerValues

MAX_RATE = 10_000  # Mbit/s; v1
MAX_NAME = 64
MAX_PASSWORD = 128
MIN_PORT, MAX_PORT = 51820, 65535  # v1
MIN_MTU, MAX_MTU = 576, 9100  # bytes; 576: what every IPv4 host must take (RFC 791), 9100: v1
MAX_KEEP_ALIVE = 65535  # seconds; WireGuard's own bound
MIN_PREFIX, MAX_PREFIX = 16, 30  # /16 holds more accounts than a node has marks; below /30 no account fits
MAX_ALLOWED_IPS = 1500  # characters; the whole configuration must fit a QR code (2331 bytes at level M)
FIRST_YEAR, LAST_YEAR = 1970, 2999
RESERVED_SERVER_NAMES = frozenset({"online", "info"})  # /wireguard/online and /wireguard/info are v1's own pages

NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}")
INTERFACE = re.compile(r"wg[0-9]{1,10}")
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")

WRONG_SERVER = "Wireguard server not valid"
WRONG_IP = "Wrong IP format"
WRONG_PRESHARED = "Wrong preshared_key (only 1 = generate, 0 = none, or 32 bytes in base64)"
WRONG_NETWORKS = "Wrong allowed_ips format (only a list of networks: 10.0.0.0/8,192.168.0.0/16)"
BOOLEANS = {"1": True, "true": True, "0": False, "false": False, "": False}


def is_name(text: str) -> bool:
    """Could this be the name of an account or a server?"""
    return NAME.fullmatch(text) is not None


def network(text: str) -> IPv4Network | IPv6Network:
    """Addresses of callers. IPv4 that is written as IPv6 (::ffff:192.0.2.1) is IPv4, as it is of callers. Raises
    ValueError, also at a zone: it would mean another link on each host."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    found = ip_network(text.strip())
    if isinstance(found, IPv6Network) and found.network_address.ipv4_mapped and found.prefixlen >= 96:
        return IPv4Network((found.network_address.ipv4_mapped, found.prefixlen - 96))
    return found


def json_form(text: str) -> dict[str, str]:
    """A form spelled as a JSON object of texts, numbers and booleans; null is an absent field. Numbers keep their
    spelling. Raises ValueError or RecursionError at anything else, also at a key that has two values."""
    found: dict[str, str] = {}
    for key, value in _json_object(text):
        if value is not None and found.setdefault(key, told := _json_text(value)) != told:
            raise ValueError("two values of one key")
    return found


def json_fields(text: str) -> Iterator[tuple[str, str]]:
    """The same, as often as they are there, with lists and objects as PHP spells them in a form: `name[]`,
    `name[key]`. What they hold is dropped: such names are never right, see `understood`."""
    for key, value in _json_object(text):
        if isinstance(value, _Object):
            yield from ((f"{key}[{inner}]", "") for inner, _ in value or (("", ""),))
        elif isinstance(value, list):
            yield f"{key}[]", ""
        elif value is not None:
            yield key, _json_text(value)


class _Object(tuple[tuple[str, object], ...]):
    """What a JSON object holds: a key may be there twice."""

    __slots__ = ()


def _json_object(text: str) -> _Object:
    found = json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_Object)
    if not isinstance(found, _Object):
        raise ValueError("not an object")
    return found


def _json_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        raise ValueError("nested values")
    return value


def understood(pairs: Iterable[tuple[str, str]], known: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The fields that a call knows, and the names that it does not. A field given twice has one value, see forms.py.

    Raises InvalidValue at a known field in another spelling (`status[0]`, `Status`, `b-download`): whoever wrote it
    meant something.
    """
    found: dict[str, str] = {}
    unknown: dict[str, None] = {}
    plain = {_plain(name): name for name in known}
    for name, value in pairs:
        if name in known:
            found[name] = value
            continue
        meant = plain.get(_plain(name)) or plain.get(_plain(name.lstrip("[").partition("[")[0]))
        if meant is not None:
            raise InvalidValue(f"Wrong field {name[:MAX_NAME]!a} (its name is {meant}, with one value)", meant)
        unknown[name] = None
    return found, list(unknown)


def _plain(name: str) -> str:
    """What is left of a name without case, signs and blanks; `amp;` is what a form that was escaped as HTML has."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKC", name).lower().strip().removeprefix("amp;"))


def new_account(form: Mapping[str, str]) -> NewAccount:
    """The fields of POST /account."""
    server = _text(form, "wg_name")
    if server is None or not is_name(server):
        raise InvalidValue(WRONG_SERVER, "wg_name")
    return NewAccount(
        server=server,
        name=_name(form, "name", "name"),
        username=_name(form, "username", "Username"),
        address=_account_address(form, WRONG_IP),
        private_key=_private_key(form),
        public_key=_key(form, "public_key"),
        download=number(form, "b_download", 0, MAX_RATE),
        upload=number(form, "b_upload", 0, MAX_RATE),
        password=_password(form),
        enabled=_status(form),
        preshared_key=_preshared_key(form) if _text(form, "preshared_key") else None,
        address_ipv6=ipv6.account_address(_text(form, "allowed_IPs_ipv6")),
    )


def account_edit(form: Mapping[str, str]) -> AccountEdit:
    """The fields of PUT /account/<name>. A wrong address has another text than on create: v1 lists it so."""
    return AccountEdit(
        server=_text(form, "wg_name"),
        address=_account_address(form, "Wrong external IP format"),
        download=number(form, "b_download", 0, MAX_RATE),
        upload=number(form, "b_upload", 0, MAX_RATE),
        password=_password(form),
        enabled=_status(form),
        preshared_key=_preshared_key(form),
        address_ipv6=ipv6.account_address(_text(form, "allowed_IPs_ipv6")),
    )


def server_values(form: Mapping[str, str]) -> ServerValues:
    """The fields of POST /wireguard and PUT /wireguard/<name>. An explicit empty text clears what can be empty."""
    name = _name(form, "name", "name")
    if name in RESERVED_SERVER_NAMES:
        raise InvalidValue("Wrong name ('online' and 'info' are reserved)")
    return ServerValues(
        node=_name(form, "node", "node"),
        name=name,
        interface=_interface(form),
        private_key=_private_key(form),
        public_key=_key(form, "public_key"),
        listen_port=number(form, "listen_port", MIN_PORT, MAX_PORT, "Wrong Port format"),
        address=_server_address(form),
        external_ip=_external_ip(form),
        endpoint=_endpoint(form),
        dns_1=_address_or_empty(form, "dns_1", "Wrong DNS1 IP format"),
        dns_2=_address_or_empty(form, "dns_2", "Wrong DNS2 IP format"),
        mtu=_mtu(form),
        keep_alive=number(form, "keep_alive", 0, MAX_KEEP_ALIVE),
        allowed_ips=_allowed_ips(form),
        internal_traffic=boolean(form, "internal_traffic"),
        reach=_reach(form),
        download=number(form, "b_download", 0, MAX_RATE),
        upload=number(form, "b_upload", 0, MAX_RATE),
        ikev2=boolean(form, "ikev2"),
        ipv6=boolean(form, "ipv6"),
        address_ipv6=ipv6.server_address(_text(form, "address_ipv6")),
        dns_1_ipv6=ipv6.dns(form, "dns_1_ipv6"),
        dns_2_ipv6=ipv6.dns(form, "dns_2_ipv6"),
        nat_ipv6=boolean(form, "nat_ipv6"),
    )


def month(year: str, month: str) -> tuple[int, int]:
    """Year and month of a path; the month with or without a leading zero."""
    if not re.fullmatch(r"0?[1-9]|1[0-2]", month):
        raise InvalidValue("Wrong month setting")
    if not re.fullmatch(r"[0-9]{4}", year) or not FIRST_YEAR <= int(year) <= LAST_YEAR:
        raise InvalidValue("Wrong year setting")
    return int(year), int(month)


# -- one kind of field each -----------------------------------------------------------------------------------------


def _text(form: Mapping[str, str], key: str) -> str | None:
    return form.get(key, "").strip() or None


def _name(form: Mapping[str, str], key: str, label: str) -> str | None:
    text = _text(form, key)
    if text is not None and not is_name(text):
        raise InvalidValue(f"Wrong {label} (only letters, numbers and '_', '-')", key)
    return text


def number(form: Mapping[str, str], key: str, low: int, high: int, problem: str = "") -> int | None:
    """Absent or empty: None."""
    text = _text(form, key)
    if text is None:
        return None
    if not NUMBER.fullmatch(text) or not low <= int(text) <= high:
        raise InvalidValue(problem or f"Wrong {key} (only {low}-{high})", key)
    return int(text)


def boolean(form: Mapping[str, str], key: str) -> bool | None:
    if key not in form:
        return None
    text = form[key].strip()
    if text.lower() not in BOOLEANS:
        raise InvalidValue(f"Wrong {key} (only 1, 0, true or false)", key)
    return BOOLEANS[text.lower()]


def _status(form: Mapping[str, str]) -> bool | None:
    text = _text(form, "status")
    if text not in (None, "enable", "disable"):
        raise InvalidValue("Wrong status (only enable or disable)", "status")
    return None if text is None else text == "enable"


def _password(form: Mapping[str, str]) -> Secret | None:
    text = form.get("password", "")
    if not text:
        return None
    if len(text) > MAX_PASSWORD or not text.isprintable():
        raise InvalidValue(f"Wrong password (only 1-{MAX_PASSWORD} printable characters)", "password")
    return Secret(text)


def _key(form: Mapping[str, str], key: str) -> str | None:
    """A WireGuard key in its one canonical spelling."""
    text = _text(form, key)
    if text is not None and spelled(decoded(text, key)) != text:
        raise InvalidValue(WRONG_KEYS, key)
    return text


def _private_key(form: Mapping[str, str]) -> Secret | None:
    text = _key(form, "private_key")
    return None if text is None else Secret(text)


def _preshared_key(form: Mapping[str, str]) -> Secret | None:
    """An explicit empty text, or 0, is none."""
    if "preshared_key" not in form:
        return None
    text = _text(form, "preshared_key") or "0"
    if text in ("0", "1"):
        return GENERATE if text == "1" else NO_SECRET
    try:
        is_right = spelled(decoded(text, "preshared_key")) == text
    except InvalidValue:
        is_right = False
    if not is_right:
        raise InvalidValue(WRONG_PRESHARED, "preshared_key")
    return Secret(text)


def _interface(form: Mapping[str, str]) -> str | None:
    text = _text(form, "interface_name")
    if text is not None and not INTERFACE.fullmatch(text):
        raise InvalidValue("Wrong network interface name (wgXXX)", "interface_name")
    return text


def _mtu(form: Mapping[str, str]) -> int | None:
    problem = f"Wrong mtu (only 0 or {MIN_MTU}-{MAX_MTU})"
    mtu = number(form, "mtu", 0, MAX_MTU, problem)
    if mtu is not None and 0 < mtu < MIN_MTU:
        raise InvalidValue(problem, "mtu")
    return mtu


def _address(text: str, problem: str, key: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise InvalidValue(problem, key) from None


def _account_address(form: Mapping[str, str], problem: str) -> IPv4Address | None:
    """`a.b.c.d` or `a.b.c.d/32`: the documents say CIDR and show bare addresses."""
    text = _text(form, "allowed_IPs")
    return None if text is None else _address(text.removesuffix("/32"), problem, "allowed_IPs")


def _address_or_empty(form: Mapping[str, str], key: str, problem: str) -> IPv4Address | str | None:
    if key not in form:
        return None
    text = _text(form, key)
    return "" if text is None else _address(text, problem, key)


def _external_ip(form: Mapping[str, str]) -> IPv4Address | str | None:
    """An address that a host can have on the internet; gateway/servers.py knows the tunnels' own."""
    address = _address_or_empty(form, "external_ip", "Wrong external IP format")
    if isinstance(address, IPv4Address) and (not _can_be_a_host(address) or address.is_link_local):
        raise InvalidValue("Wrong external IP format", "external_ip")
    return address


def _server_address(form: Mapping[str, str]) -> IPv4Interface | None:
    """`a.b.c.d/nn`: the server's own address, with the network its accounts live in."""
    text = _text(form, "address")
    if text is None:
        return None
    problem = f"Wrong IP format (only a.b.c.d/{MIN_PREFIX}-{MAX_PREFIX})"
    try:
        host, prefix = text.split("/")
        if not NUMBER.fullmatch(prefix) or not MIN_PREFIX <= int(prefix) <= MAX_PREFIX:
            raise InvalidValue(problem, "address")
        address = IPv4Interface((host, int(prefix)))
    except (AddressValueError, NetmaskValueError, ValueError):
        raise InvalidValue(problem, "address") from None
    network = address.network
    if address.ip in (network.network_address, network.broadcast_address) or not _can_be_a_host(address.ip):
        raise InvalidValue(problem, "address")
    return address


def _can_be_a_host(address: IPv4Address) -> bool:
    return not (address.is_loopback or address.is_multicast or address.is_reserved or int(address) >> 24 == 0)


def _endpoint(form: Mapping[str, str]) -> str | None:
    if "endpoint" not in form:
        return None
    text = _text(form, "endpoint")
    if text is None:
        return ""
    try:
        return endpoint.parsed(text)
    except ValueError:
        raise InvalidValue("Wrong endpoint (only an IP address or a domain)", "endpoint") from None


def _allowed_ips(form: Mapping[str, str]) -> str | None:
    """What clients send into the tunnel: networks of either family, since this is their routing table and not ours."""
    if "allowed_ips" not in form:
        return None
    text = _text(form, "allowed_ips")
    if text is None:
        return ""
    try:
        networks = ",".join(str(ip_network(part.strip(), strict=False)) for part in text.split(","))
    except ValueError:
        networks = ""
    if not networks or len(networks) > MAX_ALLOWED_IPS or "%" in networks:
        raise InvalidValue(WRONG_NETWORKS, "allowed_ips")
    return networks


def _reach(form: Mapping[str, str]) -> str | None:
    """An explicit empty text is the default."""
    return reach.parse(_text(form, "reach") or reach.INTERNET) if "reach" in form else None
