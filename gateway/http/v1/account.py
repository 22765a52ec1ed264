"""/api/v1/account: the twelve calls of v1's Accounts page. Each parses, asks one use case, spells the answer."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, TypeVar

from gateway import fields, profile
from gateway.accepted import Accepted, Placed
from gateway.creation import OUT_OF_RANGE
from gateway.errors import Conflict, InvalidValue, NotFound
from gateway.http.configuration import config_picture, config_text, refuse_unreadable
from gateway.http.envelope import Encoded
from gateway.http.v1 import objects
from gateway.http.v1.calls import ROOT, TEXT, Asked, Call, Field, listing
from gateway.http.v1.listed import all_accounts
from gateway.ikev2 import NOT_ENABLED
from gateway.keypair import WRONG_KEYS
from gateway.model import Account, LiveAccount, Look

T = TypeVar("T")

MISSING = "Account not found"
NO_PUBLIC_URL = "One-time links need public_url in gateway.toml (where customers reach it: https://vpn.example.com)"
ACCOUNTS = f"{ROOT}/account"
ACCOUNT = ACCOUNTS + "/{name}"


async def _list(asked: Asked) -> Encoded:
    return await all_accounts(asked.services, lambda account: [objects.account_object(account)])


async def _detail(asked: Asked) -> Placed[dict[str, str]]:
    account = await _account(asked)
    refuse_unreadable(account)
    return Placed(objects.account_object(account), account.node)


async def _add(asked: Asked) -> Accepted[dict[str, str]]:
    accepted = await asked.services.accounts.create(fields.new_account(asked.form), asked.is_gone)
    return accepted.told(objects.account_object)


async def _edit(asked: Asked) -> Accepted[dict[str, str]]:
    edit = await _parsed(asked, lambda: fields.account_edit(asked.form))
    return (await asked.services.accounts.edit(asked.name(MISSING), edit)).told(objects.account_object)


async def _delete(asked: Asked) -> Accepted[str]:
    return (await asked.services.accounts.delete(asked.name(MISSING))).told(lambda _: "success")


async def _config_text(asked: Asked) -> Placed[str]:
    account = await _account(asked)
    return Placed(await config_text(asked.services, asked.settings, account), account.node)


async def _config_qr(asked: Asked) -> Placed[str]:
    text = await _config_text(asked)
    return Placed(base64.b64encode(await config_picture(text.value)).decode(), text.node)


async def _ikev2_profile(asked: Asked) -> Placed[str]:
    account = await _account(asked)
    server = await asked.services.servers.get(account.server)
    shown = await asked.services.ikev2.of(server)
    host = await asked.services.servers.endpoint(server)
    return Placed(profile.ikev2_profile(account, host, shown.domain, shown.authority.der), account.node)


async def _one_time_link(asked: Asked) -> Placed[str]:
    if not asked.settings.public_url:
        raise Conflict(NO_PUBLIC_URL)
    account = await _account(asked)
    if asked.is_head:  # who only looks makes none
        return Placed("", account.node)
    key = await asked.services.one_time_links.create(account.name)
    return Placed(f"{asked.settings.public_url.rstrip('/')}/otl/{key}", account.node)


async def _mangle_rules(asked: Asked) -> Placed[str]:
    account, live = await _live(asked, Look.MARKS)
    if live.marks is None:
        raise _absent(account, "mangle rules")
    return Placed(objects.mark_lines(account, live.marks, live.marks_ipv6), account.node)


async def _traffic_control(asked: Asked) -> Placed[str]:
    account, live = await _live(asked, Look.CLASSES)
    sides = ((live.uplink, account.upload, live.upload_class), (live.interface, account.download, live.download_class))
    if account.enabled and any(rate and text is None for _, rate, text in sides):
        raise _absent(account, "traffic class")
    why_none = "unlimited" if account.enabled else "disabled"
    return Placed("".join(objects.class_lines(device, text, why_none) for device, _, text in sides), account.node)


async def _dump(asked: Asked) -> Placed[dict[str, str]]:
    account, live = await _live(asked, Look.PEER)
    return Placed(objects.dump_object(account, live.peer), account.node)


async def _traffic_statistics(asked: Asked) -> Placed[list[dict[str, Any]]]:
    name = asked.name(MISSING)
    year, month = await _parsed(asked, lambda: fields.month(asked.path["year"], asked.path["month"]))
    account, days = await asked.services.accounts.traffic(name, year, month)
    return Placed(objects.day_objects(name, days), account.node)


async def _parsed(asked: Asked, parse: Callable[[], T]) -> T:
    """Values of a request about an account. Where they are wrong, an account that is not there is the larger error."""
    try:
        return parse()
    except InvalidValue:
        await _account(asked)
        raise


async def _account(asked: Asked) -> Account:
    return await asked.services.accounts.get(asked.name(MISSING))


async def _live(asked: Asked, look: Look) -> tuple[Account, LiveAccount]:
    return await asked.services.accounts.live(asked.name(MISSING), look)


def _absent(account: Account, what: str) -> NotFound:
    """Between a change and its application, or when somebody flushed the kernel's tables: zeros would be a lie."""
    return NotFound(f"Node {account.node} has no {what} for this account now")


RATES = (
    Field("b_download", "Mbit/s, 0 = unlimited", r"^(0|[1-9][0-9]{0,4})?$"),
    Field("b_upload", "Mbit/s, 0 = unlimited", r"^(0|[1-9][0-9]{0,4})?$"),
)
PASSWORD = Field("password", "1-128 printable characters")
STATUS = Field("status", "Disabled accounts have no access", r"^(enable|disable)?$")
PRESHARED = r"^(|0|1|[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=)$"
ADDRESS = Field("allowed_IPs", "IPv4 address inside the tunnel, bare or /32")
ADDRESS_IPV6 = Field("allowed_IPs_ipv6", "IPv6 address inside the tunnel, bare or /128; lowest free one when absent")
NEW_FIELDS = (
    Field("wg_name", "Server of the account", r"^[A-Za-z0-9_-]{1,64}$", required=True),
    ADDRESS,
    ADDRESS_IPV6,
    *RATES,
    Field("name", "Unique; peer_N when absent", r"^[A-Za-z0-9_-]{0,64}$"),
    PASSWORD,
    Field("private_key", "WireGuard key, base64; a pair is generated when both keys are absent"),
    Field("public_key", "WireGuard key, base64; alone: the client keeps its private key"),
    STATUS,
    Field("preshared_key", "Not of v1: 1 = generate one, 0 or empty = none, or 32 bytes in base64", PRESHARED),
    Field("username", "Unique; user_N when absent", r"^[A-Za-z0-9_-]{0,64}$"),
)
NEW_PRESHARED = Field(
    "preshared_key",
    "Not of v1: 1 = generate another one, 0 or empty = none any more, or 32 bytes in base64",
    PRESHARED,
)
STAYS = Field("wg_name", "Server of the account; another one is refused", r"^[A-Za-z0-9_-]{1,64}$")
EDIT_FIELDS = (STAYS, ADDRESS, ADDRESS_IPV6, *RATES, PASSWORD, STATUS, NEW_PRESHARED)
NONE_SUCH = (MISSING,)
LIVE_ERRORS = (MISSING, "Node ... is not available")
IN_USE = ("IP address already in use", OUT_OF_RANGE)
ADD_ERRORS = (
    *(fields.WRONG_SERVER, fields.WRONG_IP, *IN_USE, WRONG_KEYS, "The name is already in use"),
    *("The username is already in use", "VPN account limit exceeded"),
    *("Wrong name (only letters, numbers and '_', '-')", "Wrong Username (only letters, numbers and '_', '-')"),
)
EDIT_ERRORS = (MISSING, fields.WRONG_SERVER, "Wrong external IP format", *IN_USE)

CALLS = (
    Call("GET", ACCOUNTS, "Accounts LIST", _list, listing(objects.ACCOUNT)),
    Call("POST", ACCOUNTS, "Account ADD", _add, objects.ACCOUNT, NEW_FIELDS, errors=ADD_ERRORS),
    Call("GET", ACCOUNT, "Account DETAIL", _detail, objects.ACCOUNT, errors=NONE_SUCH),
    Call(
        "PUT", ACCOUNT, "Account EDIT", _edit, objects.ACCOUNT, EDIT_FIELDS, typical=("b_download",), errors=EDIT_ERRORS
    ),
    Call("DELETE", ACCOUNT, "Account DELETE", _delete, TEXT, errors=NONE_SUCH),
    Call("GET", ACCOUNT + "/config_text", "Account Config Text", _config_text, TEXT, errors=NONE_SUCH),
    Call("GET", ACCOUNT + "/config_qr", "Account Config QR (PNG, base64)", _config_qr, TEXT, errors=NONE_SUCH),
    Call(
        "GET", ACCOUNT + "/ikev2_profile", "Account IKEv2 Profile", _ikev2_profile, TEXT, errors=(MISSING, NOT_ENABLED)
    ),
    Call(
        "GET",
        ACCOUNT + "/otl",
        "Account One-time link",
        _one_time_link,
        TEXT,
        is_change=True,
        errors=(
            MISSING,
            NO_PUBLIC_URL,
            "Too many one-time links (... of this account were not opened; the first ends ...)",
        ),
    ),
    Call(
        "GET",
        ACCOUNT + "/firewall_mangle_rules",
        "Account Firewall mangle rules",
        _mangle_rules,
        TEXT,
        errors=LIVE_ERRORS,
    ),
    Call("GET", ACCOUNT + "/traffic_control", "Account Traffic Control", _traffic_control, TEXT, errors=LIVE_ERRORS),
    Call("GET", ACCOUNT + "/dump", "Account Dump", _dump, objects.DUMP, errors=LIVE_ERRORS),
    Call(
        "GET",
        ACCOUNT + "/traffic_statistics/{year}/{month}",
        "Account Traffic statistics",
        _traffic_statistics,
        listing(objects.DAY),
        errors=(MISSING, "Wrong month setting", "Wrong year setting"),
    ),
)
