"""Door, gRPC: who may call on this host. The file system decides: a unix socket, 0660, the gateway's group.

Who may call over TCP is decided by certificates: see fleet.py.
"""

from __future__ import annotations

import grp
import os
from pathlib import Path

import grpc.aio

from agent.errors import ConfigError


def bind(server: grpc.aio.Server, path: Path, group: str) -> None:
    """Binds the server to a socket that root and one group may use. Raises ConfigError."""
    try:
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        raise ConfigError([f"socket_group: there is no group {group!r} on this host"]) from None
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        old = os.umask(0o117)  # the socket is born with its final mode, so there is no moment at which others may call
        try:
            server.add_insecure_port(f"unix:{path}")
        finally:
            os.umask(old)
        os.chown(path, -1, gid)
    except (OSError, RuntimeError) as error:
        raise ConfigError([f"listen: cannot bind unix:{path}: {error}"]) from error
