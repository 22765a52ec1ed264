"""The TLS certificate that is served: read again when its files change, kept when what is there is no pair.

Connections keep what they began with. Called by door.py for each new one, and by gateway/wiring.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl

LOOK_SECONDS = 30.0

log = logging.getLogger("gateway.http")

_Files = tuple[tuple[int, int, int], ...]  # of each file: inode, size, time of change


class Certificate:
    """Raises OSError (ssl.SSLError is one) on birth when there is no pair."""

    def __init__(self, certificate: str, key: str) -> None:
        self._paths = (certificate, key)
        self._looked = asyncio.Event()
        self._files: _Files | None = self._state()
        self.context = self._read()

    def look_now(self) -> None:
        """Somebody says that the files are new."""
        self._files = None
        self._looked.set()

    async def watch(self) -> None:
        """Looks at the files from time to time, until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._looked.wait()
            except TimeoutError:
                pass
            self._looked.clear()
            self.renew()

    def renew(self) -> None:
        files = self._state()
        if files == self._files:
            return
        self._files = files  # what does not fit together is said once, and looked at again when a file changes
        try:
            self.context = self._read()
        except OSError as error:
            log.error(
                "event=certificate-kept reason=%r: the files are no pair, the old one is served on", _words(error)
            )
        else:
            log.info("event=certificate-read file=%s", self._paths[0])

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A key with a passphrase would be asked for at the terminal, which nobody watches.
        context.load_cert_chain(*self._paths, password=_no_passphrase)
        return context

    def _state(self) -> _Files | None:
        try:
            found = [os.stat(path) for path in self._paths]
        except OSError:
            return None
        return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def _no_passphrase() -> str:
    raise OSError("the key has a passphrase; give one without")


def _words(error: OSError) -> str:
    return error.strerror or str(error)
