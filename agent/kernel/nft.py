"""The way to nftables: libnftables inside this process; questions answered in JSON, commands in nft(8)'s language.

Owns the library's context while a call lasts, and nothing afterwards: a context holds a netlink socket of the network
namespace of the thread that made it, and a cache, so every call makes its own (0.03 ms). It never decides what a rule
should be, and never runs a command. Called by `nft_marks`, `nft_forwarding`, `backend` and the probe.

Traps, all found by experiment with libnftables 1.0.6:
- `list table` and `list chain` fetch every element of every map of the table first, terse or not (75 ms at 10,000);
  only a terse `list ruleset` does not (0.3 ms). So this is the one question asked here; `nft_elements` reads elements.
- `add element` fetches none: 0.2 ms whether the map holds 100 or 30,000. All commands of one call are one transaction.
- A commit that deletes waits for one RCU grace period, 8 to 16 ms without work; one that only adds does not wait.
- Its JSON parser drops the counters of elements without a word, so what shall start from a number is written as text.
- The library calls exit() where it cannot open its socket. So one is opened here before it tries.
- Its parsers share state between contexts: one call at a time in the whole process.
"""

from __future__ import annotations

import ctypes
import errno
import json
import re
import socket
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from agent.errors import KernelError
from agent.kernel.netlink import NETLINK_NETFILTER, Netlink, Refusal, message

LIBRARY = "libnftables.so.1"
_GET_GENERATION = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN: answered by every kernel with nf_tables
# nftables/libnftables.h
_OUTPUT_JSON = 1 << 4
_OUTPUT_TERSE = 1 << 11

_ERROR = re.compile(r"Error: (.*)")
_one_at_a_time = threading.Lock()


def listing(family: str = "ip") -> list[dict[str, Any]]:
    """Every object of the family's tables except elements, as libnftables-json(5) has it. Raises KernelError."""
    text = _run(f"list ruleset {family}", _OUTPUT_JSON | _OUTPUT_TERSE)
    try:
        objects: list[dict[str, Any]] = json.loads(text)["nftables"]
    except ValueError as error:
        raise KernelError(f"nftables: libnftables listed something else than JSON: {text[:60]!r}") from error
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
                words = _words(library.nft_ctx_get_error_buffer(context), text)
                raise KernelError(f"nftables: {words}", retry=_has_nf_tables())
            return bytes(library.nft_ctx_get_output_buffer(context) or b"").decode(errors="surrogateescape")
        finally:
            library.nft_ctx_free(context)


def _words(told: bytes | None, text: str) -> str:
    """What the library says. It does not tell which line it means: of several it quotes the first, whatever failed."""
    errors = _ERROR.findall((told or b"").decode(errors="replace"))
    lines = text.splitlines()
    about = lines[0][:60] if len(lines) == 1 else f"one of {len(lines)} commands"
    return f"{errors[0] if errors else 'failed without a reason'} ({about})"


def _has_nf_tables() -> bool:
    """Asked after a failure: the library says the same of a kernel without nf_tables as of much else."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        answer = netlink.ask(message(_GET_GENERATION, 0, bytes(4)))
    return not isinstance(answer, Refusal) or answer.errno not in (errno.EINVAL, errno.EOPNOTSUPP)


def _check_socket() -> None:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER).close()
    except OSError as error:
        temporary = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
        cure = "" if temporary else "; the kernel needs nf_tables"
        raise KernelError(f"nftables: no netlink socket: {error.strerror}{cure}", retry=temporary) from error


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
