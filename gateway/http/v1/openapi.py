"""The OpenAPI 3.1 document, made from the same declarations as the routes. Pure. Called once, at the start."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from gateway.http.access import COOKIE, OPENAPI_PATH
from gateway.http.envelope import IGNORED_HEADER, NODE_HEADER, PENDING_HEADER
from gateway.http.v1.calls import TEXT, Call, Field, Schema, record

MEDIA_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "application/json")
ERROR = record({"error": {"type": "string", "minLength": 1}, "msg": {"const": ""}, "status": {"const": "error"}})
PARAMETERS: dict[str, Schema] = {
    "port": {"type": "string", "pattern": "^[0-9]{1,5}$"},
    "protocol": {"type": "string", "enum": ["tcp", "udp"]},
    "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "year": {"type": "string", "pattern": "^[0-9]{4}$"},
    "month": {"type": "string", "pattern": "^(0?[1-9]|1[0-2])$"},
}
ABOUT = (
    "Every answer has the keys `error`, `msg` and `status`. Errors of calls answer 200 unless the gateway is set to "
    '`http_status = "semantic"`; then 401, 404, 409, 422 or 503 with the same body. Unknown paths answer 404, '
    "wrong methods 405, unreadable bodies 400, 408 or 413, bugs 500, all with the same envelope. HEAD works where GET "
    "does. "
    "Slashes too many, or one at the end of a path, do no harm. "
    "POST and PUT take their fields from the body, the query, or both; a field with two values is an error. "
    "So is a known field in another spelling (`Status`, `status[0]`) or with a list or object as its value."
)


def document(calls: Iterable[Call], server_url: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {OPENAPI_PATH: {"get": _this_document()}}
    for call in calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call)
    return {
        "openapi": "3.1.0",
        "info": {"title": "wirelane", "version": "1", "description": ABOUT},
        "servers": [{"url": server_url or "/"}],
        "security": [{"access_hash": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"access_hash": {"type": "apiKey", "in": "cookie", "name": COOKIE}},
            "schemas": {"Error": ERROR},
        },
    }


def _this_document() -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {
        "summary": "This document",
        "operationId": "get_openapi",
        "security": [],
        "responses": {"200": {"description": "OpenAPI 3.1", "content": content}},
    }


def _operation(call: Call) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": call.summary, "operationId": _operation_id(call), "responses": _responses(call)}
    parameters = re.findall(r"{(\w+)}", call.path)
    if parameters:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": PARAMETERS[name]} for name in parameters
        ]
    if call.fields:
        schema = _form(call.fields)
        found["requestBody"] = {
            "required": any(field.required for field in call.fields),
            "content": {media_type: {"schema": schema} for media_type in MEDIA_TYPES},
        }
    return found


def _operation_id(call: Call) -> str:
    words = re.sub(r"\W+", "_", call.path.removeprefix("/api/v1/")).strip("_")
    return f"{call.method.lower()}_{words}"


def _responses(call: Call) -> dict[str, Any]:
    success = record({"error": {"const": ""}, "msg": call.msg, "status": {"const": "success"}})
    error = {"$ref": "#/components/schemas/Error"}
    answer: dict[str, Any] = {
        "description": "Done, or an error of the call",
        "content": {"application/json": {"schema": {"oneOf": [success, error]}}},
    }
    headers: dict[str, str] = {}
    if call.is_about_one:
        headers[NODE_HEADER] = "Of a success: the node on which the server, or the account's server, lives"
    if call.method != "GET":
        headers[PENDING_HEADER] = "Names the node that has not applied the change yet; it will, without another call"
    if call.method in ("POST", "PUT"):
        text = "Names of fields that were ignored: the call knows none of that name, or it cannot be changed"
        headers[IGNORED_HEADER] = text
    if headers:
        answer["headers"] = {name: {"description": text, "schema": TEXT} for name, text in headers.items()}
    refusal = {"description": "An error", "content": {"application/json": {"schema": error}}}
    return {"200": answer, "default": refusal}


def _form(fields: Iterable[Field]) -> Schema:
    schema: Schema = {"type": "object", "properties": {}, "required": []}
    for field in fields:
        about = {"type": "string", "description": field.description}
        schema["properties"][field.name] = {**about, "pattern": field.pattern} if field.pattern else about
        if field.required:
            schema["required"].append(field.name)
    return schema
