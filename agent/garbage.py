"""Python's cycle collector, kept from looking at ten thousand accounts again and again: nothing else can run meanwhile,
and each time takes 50 ms.

What the agent holds lives long and has no cycles, so it is put out of the collector's sight (frozen). That also hides
the few cycles that come to an end later, which is why somebody has to `sweep` now and then.
"""

from __future__ import annotations

import gc


def calm() -> None:
    """At the start: a patch or a pass makes thousands of objects that live on; few are in cycles."""
    gc.set_threshold(10_000, 10, 100)


def keep() -> None:
    """After a full pass: what was read lives until the next one. Looks at what is young only."""
    gc.collect(1)
    gc.freeze()


def sweep() -> None:
    """Looks at everything, once a day: it takes 60 ms at 10,000 accounts."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
