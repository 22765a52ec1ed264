"""What the configuration says and the API may set besides: what the API set lies in the database, wins over the file,
and holds for every gateway. Who works by such a value reads it each time (gateway/store/settings.py): another gateway
may have set it a moment ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Tuning:
    """`usage_months`: of usage that are kept, the current one included; 0 = all. `handshake_uptime`: seconds."""

    collect_seconds: float = 300.0
    usage_months: int = 2
    handshake_uptime: int = 180
    link_days: int = 10

    def with_set(self, values: Mapping[str, int]) -> Tuning:
        return replace(self, **values)


TUNABLE = tuple(each.name for each in fields(Tuning))
