"""What the layers of this door learn of a request, for its one line in the journal. Pure.

The journal makes it and writes it; access.py says who called or why not, answering.py what was changed. Everything that
comes from outside goes through `escaped`: nobody can write a line, or a field of a line, of his own.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from starlette.types import Scope

SUCCESS = "success"
MOST_CHARACTERS = 80  # characters of what came from outside
_PLAIN = "/:.@{}[]_-"  # beside letters and digits


@dataclass(slots=True)
class Note:
    """Of one request, filled as it comes through. "" = nothing to say."""

    key: str = ""  # name of the access key
    refusal: str = ""  # why it was not let in
    silent: bool = False  # it is counted instead (refusals.py), or there is nothing to tell
    is_change: bool = False
    subject: str = ""  # "account=peer_1"
    outcome: str = ""  # "success", or the error's text
    pending: str = ""  # the node that is behind
    trouble: str = ""  # why the database did not answer
    status: int = 0  # of an error, also where it is answered with 200; 0 = as answered

    @classmethod
    def of(cls, scope: Scope) -> Note:
        note = scope.get("wirelane.note")
        return note if isinstance(note, Note) else cls()


def escaped(text: str) -> str:
    """As one word, whatever is in it."""
    return quote(text[:MOST_CHARACTERS], safe=_PLAIN, errors="replace") or "-"
