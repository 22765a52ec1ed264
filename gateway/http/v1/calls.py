"""What a call of the API is: one declaration from which its route and its page of the OpenAPI document are made.

A call's `answer` is an async function of `Asked`; it returns what goes into `msg` (or a Placed around it) and raises
ApiErrors. So the path groups beside this file know neither requests nor responses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gateway.errors import NotFound
from gateway.fields import is_name
from gateway.http.services import HttpSettings, Services

ROOT = "/api/v1"
Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What came in: the path's parameters, and the fields of body and query."""

    services: Services
    settings: HttpSettings
    path: Mapping[str, str]
    form: Mapping[str, str]
    is_head: bool = False  # a GET of which only the head is asked for
    is_gone: Callable[[], bool] = lambda: False  # has the caller hung up

    def name(self, missing: str) -> str:
        """The name in the path. What cannot be a name is not there: `missing` without asking the store."""
        name = self.path["name"]
        if not is_name(name):
            raise NotFound(missing)
        return name


@dataclass(frozen=True, slots=True)
class Field:
    """A form field, for the OpenAPI document."""

    name: str
    description: str
    pattern: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    method: str
    path: str  # "/api/v1/account/{name}"
    summary: str
    answer: Callable[[Asked], Awaitable[Any]]
    msg: Schema  # JSON schema of a success's `msg`
    fields: tuple[Field, ...] = ()
    is_change: bool = False  # a GET that makes something
    example: str = ""  # of the path, for people, where the names in it do not tell
    typical: tuple[str, ...] = ()  # fields that its example names besides those that are required
    is_of_all: bool = False  # about the installation, whatever it is called by
    errors: tuple[str, ...] = ()  # of v1, or of this call alone; wrong fields are named by their own

    @property
    def is_about_one(self) -> bool:
        """Server or account; answers about several, or about the installation, name no node."""
        return ("{name}" in self.path or self.method == "POST") and not self.is_of_all


def shown(schema: Schema, example: object) -> Schema:
    """The same, with a value that people see."""
    return {**schema, "examples": [example]}


def record(properties: Mapping[str, Schema], sometimes: Mapping[str, Schema] = MappingProxyType({})) -> Schema:
    """Schema of an object with exactly these keys, and some that it may have."""
    return {
        "type": "object",
        "properties": {**properties, **sometimes},
        "required": list(properties),
        "additionalProperties": False,
    }


def texts(*names: str, sometimes: tuple[str, ...] = ()) -> Schema:
    """Schema of an object whose values are all texts."""
    return record(dict.fromkeys(names, TEXT), dict.fromkeys(sometimes, TEXT))


def listing(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def by_name(item: Schema, example: str = "NAME") -> Schema:
    """Schema of an object whose keys are names, or what is like `example`."""
    return {"type": "object", "propertyNames": shown(TEXT, example), "additionalProperties": item}
