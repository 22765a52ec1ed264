"""PURE: the API as a page for people, made of the same declarations as its routes: docs/api.md. `scripts/api` writes
it, and a test tells when it is behind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from gateway.http.v1 import CALLS
from gateway.http.v1.calls import ROOT, Call, Field, Schema

HEAD = """# The API
Made by `scripts/api` from the declarations that the routes are made from; a machine reads the same at
`/api/v1/openapi.json`.

Every call needs the cookie `access_hash` (`wirelane-gateway key add`), here in a file that curl reads:
```
api=https://vpn.example.com/api/v1
echo 'Cookie: access_hash=...' > me.header; chmod 600 me.header
```
Every answer is `{"error": "", "msg": ..., "status": "success"}` or
`{"error": "a sentence", "msg": "", "status": "error"}`; below stands what `msg` is. POST and PUT
take their fields as a form, multipart or a JSON object.

Errors of a call answer HTTP 200, `Not authorized` too; with `http_status = "semantic"` 401, 404, 409, 422 or 503. What
is wrong before or beside any call has its own status in either case: 400 (a body that cannot be read, or no HTTP), 404
(a path that is not there, from who has a key), 405 (a method), 408 and 413 (a body that is too slow or too large), 414
and 431 (a path or head that is too long), 429 (too many requests at a time without a right key), 503 (too many
connections) and 500 (`Internal error`, a bug of ours).

| header of an answer | what it says |
|---|---|
| `X-Wirelane-Node` | the node of what the answer is about |
| `X-Wirelane-Pending` | a node that has not applied the change yet; it will |
| `X-Wirelane-Ignored` | fields that nobody knows, or that cannot be changed |

Errors that any call may answer: `Not authorized`, `Wrong FIELD (only ...)` for a field with a wrong value, `Wrong field
...` for one in another spelling, and a sentence while the database cannot be reached.
"""
KINDS = {
    "account": "Accounts",
    "wireguard": "WireGuard servers",
    "ikev2": "IKEv2",
    "otl": "One-time links",
    "firewall": "Firewall",
    "system": "The installation",
    "license": "The installation",
}
NOT_SERVED = "Known from v1, not served"
IN_PATH = {"name": "NAME", "year": "2026", "month": "11", "port": "8080", "protocol": "tcp"}
SAMPLES = {
    "allowed_IPs": "10.0.0.2",
    "address": "10.0.0.1/24",
    "b_download": "50",
    "b_upload": "20",
    "endpoint": "198.51.100.7:51820",
    "external_ip": "198.51.100.1",
    "interface_name": "wg1",
    "latest_handshake": "1795773722",
    "listen_port": "51821",
    "mangle": "100",
    "private_key": "KEY=",
    "public_key": "KEY=",
    "wg_name": "Default_1",
    "dns_1": "8.8.8.8",
    "dns_2": "1.1.1.1",
    "lifetime": "10",
    "enabled": "1",
    "status": "enable",
    "date": "2026-11-01",
    "has_preshared_key": "1",
    "address_ipv6": "fd00:1:2:3::1/64",
    "dns_1_ipv6": "2001:4860:4860::8888",
    "dns_2_ipv6": "2606:4700:4700::1111",
}
UNKNOWN = "text"
MOST_SHOWN = 3  # fields of a call that needs none


def paper(calls: Iterable[Call] = CALLS) -> str:
    served = [call for call in calls if not call.summary.startswith(NOT_SERVED)]
    refused = sorted({call.path.removeprefix(ROOT) for call in calls if call.summary.startswith(NOT_SERVED)})
    kinds = list(dict.fromkeys(KINDS.values()))
    ordered = sorted(served, key=lambda call: kinds.index(_kind(call)))
    parts = [HEAD]
    for kind, some in groupby(ordered, key=_kind):
        parts += [f"## {kind}", *(_section(call) for call in some)]
    paths = ", ".join(f"`{path}`" for path in refused)
    parts.append(f"## Not served\n{paths}: known from v1; they answer an error that says what is instead.\n")
    return "\n".join(parts)


def _kind(call: Call) -> str:
    return KINDS[call.path.removeprefix(f"{ROOT}/").split("/")[0]]


def _section(call: Call) -> str:
    path = call.path.removeprefix(ROOT)
    shown = re.sub(r"{(\w+)}", lambda found: IN_PATH.get(found[1], found[1].upper()), call.example or path)
    shown = shown.removeprefix(ROOT)
    lines = [f"### {call.method} {path}", f"{call.summary}.", "```", f"curl {_arguments(call)}$api{shown}", "```"]
    if call.fields:
        lines += ["| field | what it is |", "|---|---|", *map(_row, call.fields), ""]
    lines += ["Answer:", "```", json.dumps(_sample("", call.msg), ensure_ascii=False), "```"]
    lines += _remarks(call.msg)
    if call.errors:
        lines.append("Errors: " + ", ".join(f"`{text}`" for text in call.errors) + ".")
    return "\n".join(lines) + "\n"


def _arguments(call: Call) -> str:
    method = "" if call.method == "GET" else f"-X {call.method} "
    named = [field for field in call.fields if field.required or field.name in call.typical] or call.fields[:MOST_SHOWN]
    data = "".join(f"-d {field.name}={_value(call, field)} " for field in named)
    return f"-H @me.header {method}{data}"


def _value(call: Call, field: Field) -> str:
    """As in the answer, where that has it."""
    found = _sample(field.name, call.msg.get("properties", {}).get(field.name, {}))
    return "1" if found is True else "..." if found == UNKNOWN else str(found)


def _row(field: Field) -> str:
    needed = " (required)" if field.required else ""
    return f"| `{field.name}`{needed} | {field.description.replace('|', '/')} |"


def _remarks(msg: Schema) -> list[str]:
    """What one example cannot show."""
    objects = list(_objects(msg))
    some = dict.fromkeys(name for one in objects for name in one["properties"] if name not in one["required"])
    maybe = dict.fromkeys(name for one in objects for name, item in one["properties"].items() if "anyOf" in item)
    lines = [("Fields that only some have", some), ("Fields that may be null", maybe)]
    return [f"{said}: {', '.join(f'`{name}`' for name in names)}." for said, names in lines if names]


def _objects(schema: Schema) -> Iterator[Schema]:
    """Those with fields, at any depth."""
    if "properties" in schema:
        yield schema
    for inner in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from _objects(inner)


def _sample(name: str, schema: Schema | Mapping[str, Any]) -> Any:
    if "examples" in schema:
        return schema["examples"][0]
    if "anyOf" in schema:
        return _sample(name, schema["anyOf"][0])
    if schema.get("type") == "array":
        return [_sample(name, schema["items"])]
    if schema.get("type") == "object":
        more = schema.get("additionalProperties")
        found = {key: _sample(key, item) for key, item in schema.get("properties", {}).items()}
        return {**found, _sample("", schema["propertyNames"]): _sample("", more)} if isinstance(more, dict) else found
    return {"integer": 0, "boolean": True, "number": 0.5}.get(str(schema.get("type")), SAMPLES.get(name, UNKNOWN))
