"""SQLite is for one gateway: a second one is refused. The command line works beside it.

The lock is the kernel's, on a file beside the database, and goes with the process however that ends. (Not on the
database: a process that closes it anywhere loses SQLite's own locks on it.) Called by wiring.py.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import ConfigError
from gateway.store.engine import parsed_url


@contextmanager
def only_gateway(url: str) -> Iterator[None]:
    """Raises ConfigError where another gateway serves the same SQLite file. PostgreSQL is for any number of them."""
    parsed = parsed_url(url)
    if parsed.get_backend_name() != "sqlite":
        yield
        return
    try:
        lock = os.open(f"{parsed.database}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError([f"database: {parsed.database}.lock cannot be opened: {error.strerror}"]) from None
    with os.fdopen(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                [f"database: another gateway serves {parsed.database}; SQLite is for one, use PostgreSQL for several"]
            ) from None
        yield
