"""What a use case answers about one server or account: the value, and its node. Values only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """What is told of one server or account. `node`: where that lives."""

    value: T
    node: str


@dataclass(frozen=True, slots=True)
class Accepted(Placed[T]):
    """An accepted change: what it made. `pending`: the node, or nodes, that have not applied it yet; "" = they have."""

    pending: str = ""

    @property
    def of_all(self) -> Accepted[T] | T:
        """As it is answered where it is about the installation: nodes are named only where some are behind."""
        return self if self.pending else self.value

    def told(self, tell: Callable[[T], U]) -> Accepted[U]:
        return Accepted(tell(self.value), self.node, self.pending)
