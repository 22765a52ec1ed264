"""PURE. Where an agent is called: the one rule for what a target is, and one spelling of each.

`unix:/run/wirelane-agent/agent.sock` is an agent on the same host, where the file system says who may call. `HOST:PORT`
is one on another host, over TCP and always with mutual TLS. Called by whatever takes a target in, and by agents/.
"""

from __future__ import annotations

from gateway import endpoint

UNIX = "unix:"
MAX_SOCKET_PATH = 107  # bytes: sun_path of unix(7) is 108 with the final zero
RIGHT = f"{UNIX}/path/of/the/agent.sock on this host, or HOST:PORT such as 198.51.100.11:7443"


def parsed(text: str) -> str:
    """As it is kept. Raises ValueError with a sentence for people."""
    if text.startswith(UNIX):
        return UNIX + _path(text.removeprefix(UNIX))
    host, port = _split(text)
    try:
        return endpoint.with_port(endpoint.parsed(host), port)
    except ValueError:
        raise ValueError(f"target {text!r} must be {RIGHT}") from None


def address(target: str) -> tuple[str, int]:
    """Host, without brackets, and port of a target over TCP that was `parsed` once."""
    host, port = _split(target)
    return host.removeprefix("[").removesuffix("]"), port


def _split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    is_bare_ipv6 = ":" in host and not host.startswith("[")  # whose last group would be taken for a port
    if not host or is_bare_ipv6 or not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65535:
        raise ValueError(f"target {text!r} must be {RIGHT}")
    return host, int(port)


def _path(path: str) -> str:
    if not path.startswith("/") or path.startswith("//") or path.endswith("/") or not path.isprintable():
        raise ValueError(f"target {UNIX + path!r} must name an absolute path: {UNIX}/run/wirelane-agent/agent.sock")
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise ValueError(f"target {UNIX + path!r} is too long: Linux allows {MAX_SOCKET_PATH} bytes in a socket's path")
    return path
