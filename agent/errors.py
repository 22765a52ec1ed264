"""Everything the agent raises on purpose.

AgentError
├── ConfigError          agent.toml or the command line; carries every problem at once
├── InvalidValue         a value from the gateway that cannot be right; nothing was changed
├── StaleRevision        a patch that does not start where this agent is: send a snapshot
├── NotFound             no such account or server on this node
├── EnrolmentFailed      this host did not become a node: says why, and what to do
├── IdentityError        the node's certificate, or its key, is not one to go on with
├── StoreError           the state file cannot be read or written
│   └── BrokenStore      it is damaged: it has to be put aside
└── KernelError          Linux refused something; says what, and whether a retry may help

Every message says what failed, for whom, and the cure where one is known. They are translated in three places
only: the reconcile loop, the gRPC edge and the command line.
"""

from __future__ import annotations

from collections.abc import Sequence


class AgentError(Exception):
    """Base of all; its text is for people."""


class ConfigError(AgentError):
    """The configuration cannot be used. `problems`: one sentence each, all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class InvalidValue(AgentError):
    """`field` is wrong; the message says what is right."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class StaleRevision(AgentError):
    """The patch starts at another epoch or after our revision."""


class NotFound(AgentError):
    """No such account or server on this node."""


class EnrolmentFailed(AgentError):
    """This host did not become a node."""


class IdentityError(AgentError):
    """This node's certificate, its key or its authorities are not such that gateways could accept them."""


class StoreError(AgentError):
    """The agent's own file cannot be read or written."""


class BrokenStore(StoreError):
    """The agent's own file is damaged."""


class KernelError(AgentError):
    """Linux refused something. `retry`: the same call may work later without anybody's help."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry
