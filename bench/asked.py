"""What the command line asks of a question, and how it says what it is doing."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

NAME = "bench"  # of the lab
FULL_SIZE = 10_000  # accounts; what the bars speak of


@dataclass(frozen=True, slots=True)
class Asked:
    accounts: int = FULL_SIZE
    backends: tuple[str, ...] = ("iptables",)
    minutes: float = 20.0  # of the leak test
    name: str = NAME
    keep: bool = False  # leave the lab of the last question up
    began: float = field(default_factory=time.monotonic)

    @property
    def is_full_size(self) -> bool:
        return self.accounts >= FULL_SIZE

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", file=sys.stderr, flush=True)
