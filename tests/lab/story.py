"""What the demo tells: chapters, and steps that say ok or FAILED. Called by demo.py and fleet_demo.py."""

from __future__ import annotations

import time


class Story:
    """Tells, and remembers whether every step held."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._began = time.monotonic()

    def chapter(self, title: str) -> None:
        print(f"\n[{time.monotonic() - self._began:3.0f} s] {title}", flush=True)

    def tell(self, text: str) -> None:
        print(f"         {text}", flush=True)

    def step(self, held: bool, text: str) -> None:
        print(f"  {'ok    ' if held else 'FAILED'} {text}", flush=True)
        if not held:
            self.failed.append(text)
