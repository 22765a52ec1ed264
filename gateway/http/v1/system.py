"""/api/v1/system and what else is about the installation: the "test connection" of billing modules, its host, its
licence; and the parts of v1 that are known and not served, which say so.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from gateway import fields, host
from gateway.errors import NotFound
from gateway.http.v1.calls import (
    BOOLEAN,
    INTEGER,
    ROOT,
    TEXT,
    Asked,
    Call,
    Field,
    Schema,
    listing,
    record,
    shown,
    texts,
)
from gateway.tuning import Tuning


async def _status(asked: Asked) -> dict[str, Any]:
    return await asked.services.system.status()


async def _info(asked: Asked) -> dict[str, str]:
    return host.described(asked.settings.time_zone)


async def _reload(asked: Asked) -> str:
    await asked.services.system.reload()
    return "success"


async def _config(asked: Asked) -> dict[str, int]:
    return _spelled(await asked.services.system.tuning())


async def _configure(asked: Asked) -> dict[str, int]:
    minutes, *others = (fields.number(asked.form, name, least, most) for name, (least, most, _) in CONFIG.items())
    values = {"collect_seconds": minutes and minutes * 60, "usage_months": others[0], "handshake_uptime": others[1]}
    named = {name: value for name, value in values.items() if value is not None}
    return _spelled(await asked.services.system.tune(named))


async def _default(asked: Asked) -> dict[str, int]:
    return _spelled(
        await asked.services.system.tune(dict.fromkeys(("collect_seconds", "usage_months", "handshake_uptime")))
    )


def _spelled(tuning: Tuning) -> dict[str, int]:
    values = math.ceil(tuning.collect_seconds / 60), tuning.usage_months, tuning.handshake_uptime
    return dict(zip(CONFIG, values, strict=True))


async def _license(asked: Asked) -> dict[str, Any]:
    return await asked.services.system.license()


async def _wireguard(asked: Asked) -> dict[str, str]:
    return await asked.services.system.wireguard()


def _refused(why: str) -> Callable[[Asked], Awaitable[Any]]:
    async def answer(_: Asked) -> NoReturn:
        raise NotFound(why)

    return answer


def _maybe(schema: Schema) -> Schema:
    """Null while nobody knows."""
    return {"anyOf": [schema, {"type": "null"}]}


TIME = shown({"type": "string", "format": "date-time"}, "2027-02-26T02:59:23Z")
STATE = shown(TEXT, "OK")
NODE = record(
    {
        "name": TEXT,
        "status": STATE,
        **dict.fromkeys(("problem", "unreachable_cause"), shown(TEXT, "")),
        "warnings": listing(TEXT),
        **dict.fromkeys(("drained", "reachable"), BOOLEAN),
        **dict.fromkeys(("revision", "acknowledged_revision", "pending_changes", "failed_accounts"), INTEGER),
        "failures": listing(texts("subject", "reason")),
        **dict.fromkeys(("applied_revision", "drift", "accounts", "servers"), _maybe(INTEGER)),
        **dict.fromkeys(("clock_offset", "sample_age", "resync_age", "collection_age"), _maybe({"type": "number"})),
        **dict.fromkeys(("version", "wireguard", "marks"), _maybe(TEXT)),
        "certificate_expires": _maybe(TIME),
    }
)
STATUS = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("count_accounts", "count_accounts_available", "count_wireguard"), INTEGER),
        "license": TIME,
        "license_valid": BOOLEAN,
        "status": STATE,
        "version": TEXT,
        "nodes": listing(NODE),
        "set_by_api": listing(TEXT),
    },
    "required": [
        *("count_accounts", "count_accounts_available", "count_wireguard", "license", "license_valid"),
        *("status", "version", "nodes", "set_by_api"),
    ],
}
INFO = texts(
    *("cpu_model", "cpu_threads", "cpu_used_load1", "cpu_used_load5", "cpu_used_load15", "hostname", "memory_total"),
    *("memory_used", "memory_free", "memory_used_percent", "os_architecture", "os_name", "timezone"),
)
CONFIG = {  # the least, the most, what it is
    "traffic_statistics_frequency": (1, 1440, "Minutes between two readings of the nodes' totals"),
    "traffic_statistics_history": (
        0,
        1200,
        "Months of traffic statistics that are kept, the current one included; 0 = off: none is deleted",
    ),
    "wireguard_handshake_uptime": (1, 300, "Seconds since the last handshake within which an account counts as online"),
}
CONFIG_FIELDS = tuple(Field(name, about, r"^(|0|[1-9][0-9]{0,3})$") for name, (_, _, about) in CONFIG.items())
CONFIG_OBJECT = record({name: shown(INTEGER, own) for name, own in zip(CONFIG, (5, 2, 180), strict=True)})
LICENSE = record(
    {
        "accounts": INTEGER,
        "expiration_date": TIME,
        "key": TEXT,
        "last_check": TIME,
        "valid": BOOLEAN,
    }
)
NO_BACKUPS = "Backups are not made by this API: back up the database and its key (docs/operations.md)"
REFUSED = {  # known from v1, and not served: path -> what is instead
    "/dns": "DNS is not served here: give servers dns_1 and dns_2 of a resolver of your choice",
    "/system/traffic_logging": "Connections are not logged here; bytes are counted by account and day",
    "/backups": NO_BACKUPS,
    "/backups/config": NO_BACKUPS,
    "/ikev2/advanced_settings": "strongSwan's own settings are not offered here",
}
CALLS = (
    Call("GET", f"{ROOT}/system/status", "Counts, licence, state of the nodes", _status, STATUS),
    Call("GET", f"{ROOT}/system/info", "The host that this gateway runs on; memory in bytes", _info, INFO),
    Call("PUT", f"{ROOT}/system/reload", "Let all nodes compare everything with what is desired, now", _reload, TEXT),
    Call(
        "GET", f"{ROOT}/system/config", "What holds now: as set here, else as in gateway.toml", _config, CONFIG_OBJECT
    ),
    Call("PUT", f"{ROOT}/system/config", "Set it, for all gateways at once", _configure, CONFIG_OBJECT, CONFIG_FIELDS),
    Call(
        "PUT",
        f"{ROOT}/system/config/default",
        "As in gateway.toml again (5, 2, 180 where it says nothing)",
        _default,
        CONFIG_OBJECT,
    ),
    Call("GET", f"{ROOT}/license", "A licence as v1 had one: free, valid, of no limit of its own", _license, LICENSE),
    # Before /wireguard/{name}: no server can be named `info` (gateway/fields.py).
    Call(
        *("GET", f"{ROOT}/wireguard/info", "What the nodes do WireGuard with", _wireguard),
        texts("wireguard", "wireguard-tools"),
    ),
    *(
        Call(method, ROOT + path, "Known from v1, not served: the error says what is instead", _refused(why), TEXT)
        for path, why in REFUSED.items()
        for method in ("GET", "POST", "PUT", "DELETE")
    ),
)
