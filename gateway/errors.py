"""Everything the gateway raises on purpose, with the exact text that v1 clients see. No HTTP in here.

GatewayError
├── ConfigError          gateway.toml or the command line; every problem at once
├── ApiError             shown to a REST client as it is (`text`)
│   ├── NotAuthorized
│   ├── NotFound         no such account, server, page; a part of v1 that is not served, with what is instead
│   ├── InvalidValue     a value that cannot be right
│   ├── Conflict         a value that is right, but in use
│   ├── EnrolmentRefused a host that wants to become a node, and is not let in
│   ├── NodeUnavailable  a live read while the agent is away; names the node
│   └── DatabaseUnavailable  it did not answer in time; nothing was changed, or nobody knows
├── OutputLost           what was to be written could not be: a full disk, or a reader that is gone
├── SealBroken           a secret in the database that the key does not open
└── AgentUnreachable     raised by the gRPC door; sync and collect try again, live reads become NodeUnavailable
"""

from __future__ import annotations

from collections.abc import Sequence


class GatewayError(Exception):
    """Base of all; its text is for people."""


class ConfigError(GatewayError):
    """The configuration cannot be used. `problems`: one sentence each, all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class ApiError(GatewayError):
    """`text` goes into the envelope's `error`. `field`: the v1 field that it is about, "" = none in particular."""

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.field = field


class NotAuthorized(ApiError):
    def __init__(self) -> None:
        super().__init__("Not authorized")


class NotFound(ApiError):
    """`Account not found`, `Wireguard server not found`, `Not found`."""


class InvalidValue(ApiError):
    """A value that cannot be right; the text says what is."""


class Conflict(ApiError):
    """`The name is already in use` and its kin."""


class EnrolmentRefused(ApiError):
    """A host that wants to become a node, and is not let in. `reason` is a word, for the log."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class NodeUnavailable(ApiError):
    """A live read while the agent is away, or before it has the account."""

    def __init__(self, node: str, problem: str = "is not available") -> None:
        super().__init__(f"Node {node} {problem}")
        self.node = node


class DatabaseUnavailable(ApiError):
    """The database did not answer in time, or cannot be written to. A retry may help.

    `reason`: in its own words, for the log and the terminal, not for REST clients. `state`: what is wrong with it.
    """

    def __init__(self, reason: str = "", state: str = "") -> None:
        super().__init__(f"The database {state or 'is not available'}, try again")
        self.reason = reason
        self.state = state

    def __str__(self) -> str:
        return f"{self.text} ({self.reason})" if self.reason else self.text


class OutputLost(GatewayError):
    """`silent`: whoever read it has seen enough, as `head` does."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(f"{path}: {error.strerror}")
        self.silent = isinstance(error, BrokenPipeError)


class SealBroken(GatewayError):
    """A secret that the key does not open. `place`: table, column and row."""

    def __init__(self, place: str) -> None:
        super().__init__(f"{place} cannot be decrypted: the database was edited, or the key is another's")
        self.place = place


class AgentUnreachable(GatewayError):
    """The agent did not answer in time, or said that it cannot just now. `cause`: the same as a word, of a few."""

    def __init__(self, text: str, cause: str = "no-answer") -> None:
        super().__init__(text)
        self.cause = cause
