"""The way to nftables: libnftables inside this process; questions answered in JSON, commands in nft(8)'s language.

Owns the library's context while a call lasts, and nothing afterwards: a context holds a netlink socket of the network
namespace of the thread that made it, and a cache, so every call makes its own (0.03 ms). It never decides what a rule
should be, and never runs a command. Called by `nft_marks`, `nft_forwarding`, `backend` and the probe.

Traps, all found by experiment with libnftables 1.0.6:
- `list table` and `list chain` fetch every element of every map of the table first, terse or not (75 ms at 10,000);
  only a terse `list ruleset` does not (0.3 ms). So this is the one question asked here; `nft_elements` reads elements.
- `add element` fetches none: 0.2 ms whether the map holds 100 or 30,000. All commands of one call are one transaction.
- Commits that delete wait for the kernel to have destroyed what the commit before deleted: one RCU grace period, 10 to
  20 ms of waiting, without work. A commit that only adds, after one that only added, does not wait.
- Its JSON parser drops the counters of elements without a word, so what shall start from a number is written as text.
- The library calls exit() where it cannot open its socket. So one is opened here before it tries.
- Its parsers share state between contexts: one call at a time in the whole process.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from agent.errors import KernelError

LIBRARY = "libnftables.so.1"
NETLINK_NETFILTER = 12  # linux/netlink.h; Python has no name for it
# nftables/libnftables.h
_OUTPUT_JSON = 1 << 4
_OUTPUT_TERSE = 1 << 11

_one_at_a_time = threading.Lock()


def listing(family: str = "ip") -> list[dict[str, Any]]:
    """Every object of the family's tables except elements, as libnftables-json(5) has it. Raises KernelError."""
    objects: list[dict[str, Any]] = json.loads(_run(f"list ruleset {family}", _OUTPUT_JSON | _OUTPUT_TERSE))["nftables"]
    return objects


def apply(commands: Sequence[str]) -> None:
    """One transaction: all of the commands or none. Raises KernelError in libnftables' own words."""
    if commands:
        _run("\n".join(commands), 0)


def _run(text: str, output: int) -> str:
    library = _library()
    with _one_at_a_time:
        _check_socket()
        context = library.nft_ctx_new(0)
        if not context:
            raise KernelError("nftables: libnftables could not be started: out of memory")
        try:
            if library.nft_ctx_buffer_output(context) or library.nft_ctx_buffer_error(context):
                raise KernelError("nftables: libnftables could not be started: out of memory")
            library.nft_ctx_output_set_flags(context, output)
            if library.nft_run_cmd_from_buffer(context, text.encode()) != 0:
                raise KernelError(f"nftables: {_words(library.nft_ctx_get_error_buffer(context))}")
            return bytes(library.nft_ctx_get_output_buffer(context) or b"").decode(errors="surrogateescape")
        finally:
            library.nft_ctx_free(context)


def _words(told: bytes | None) -> str:
    """What the library says first, and the start of the command it says it of; not where in a text nobody sees."""
    lines = (told or b"").decode(errors="replace").splitlines()
    for number, line in enumerate(lines):
        error = line.partition("Error: ")[2]
        if error:
            command = lines[number + 1][:60].strip() if number + 1 < len(lines) else ""
            return f"{error} ({command})" if command else error
    return " ".join(lines)[:300] or "libnftables failed and does not say why"


def _check_socket() -> None:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER).close()
    except OSError as error:
        text = os.strerror(error.errno or 0)
        raise KernelError(f"nftables: no netlink socket: {text}; the kernel needs nf_tables") from error


@cache
def _library() -> Any:
    """Loaded once. Raises KernelError where it is not installed."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise KernelError(
            f"nftables: {LIBRARY} cannot be loaded: install the package libnftables1", retry=False
        ) from error
    context = ctypes.c_void_p
    library.nft_ctx_new.restype, library.nft_ctx_new.argtypes = context, [ctypes.c_uint32]
    library.nft_ctx_free.restype, library.nft_ctx_free.argtypes = None, [context]
    library.nft_ctx_output_set_flags.restype = None
    library.nft_ctx_output_set_flags.argtypes = [context, ctypes.c_uint]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [context]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).restype, getattr(library, name).argtypes = ctypes.c_char_p, [context]
    library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
    return library
