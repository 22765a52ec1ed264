"""What may be true of an account after the answers that were given: pure. Called by sellers.py and verdicts.py.

An answer that did not come, or says that nobody knows, leaves two possibilities; the next answers narrow them again. An
answer that fits none of them is a lie, and the checker says so at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


@dataclass(frozen=True, slots=True)
class Held:
    """An account that is there. `life`: which creation of its name, over the whole run."""

    life: int
    enabled: bool
    download: int
    upload: int


@dataclass(frozen=True, slots=True)
class Create:
    life: int
    download: int
    upload: int


@dataclass(frozen=True, slots=True)
class Edit:
    download: int
    upload: int


@dataclass(frozen=True, slots=True)
class Switch:
    enabled: bool


@dataclass(frozen=True, slots=True)
class Delete:
    pass


@dataclass(frozen=True, slots=True)
class Read:
    pass


Call = Create | Edit | Switch | Delete | Read
State = Held | None  # None: there is no such account


class Answer(Enum):
    DONE = "done"
    NO_SUCH = "no such account"
    IN_USE = "the name is in use"
    UNKNOWN = "nobody knows"


class Lie(Exception):
    """An answer that fits nothing that may be true."""


def expected(call: Call, state: State) -> Answer:
    if isinstance(call, Create):
        return Answer.DONE if state is None else Answer.IN_USE
    return Answer.NO_SUCH if state is None else Answer.DONE


def after(call: Call, state: State) -> State:
    """The state after the call was carried out. PURE."""
    if expected(call, state) is not Answer.DONE:
        return state
    match call:
        case Create():
            return Held(call.life, True, call.download, call.upload)
        case Edit():
            return replace(_there(state), download=call.download, upload=call.upload)
        case Switch():
            return replace(_there(state), enabled=call.enabled)
        case Delete():
            return None
        case Read():
            return state


def _there(state: State) -> Held:
    assert state is not None
    return state


def told(possible: frozenset[State], call: Call, answer: Answer) -> frozenset[State]:
    """What may be true after the answer. Raises Lie."""
    if answer is Answer.UNKNOWN:
        return possible | {after(call, state) for state in possible}
    fitting = {after(call, state) for state in possible if expected(call, state) is answer}
    if not fitting:
        raise Lie(f"answered {answer.value!r}, but may be only: {words(possible)}")
    return frozenset(fitting)


def words(possible: frozenset[State]) -> str:
    return " or ".join(sorted(_word(state) for state in possible))


def _word(state: State) -> str:
    if state is None:
        return "absent"
    return f"{'on' if state.enabled else 'off'} {state.download}/{state.upload} (life {state.life})"
