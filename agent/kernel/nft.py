"""The way to nftables: libnftables inside this process; questions answered in JSON, commands in nft(8)'s language.

Owns the library's context while a call lasts, and nothing afterwards: a context holds a netlink socket of the network
namespace of the thread that made it, and a cache, so every call makes its own (0.03 ms). It never decides what a rule
should be, and never runs a command. Called by `nft_marks`, `nft_forwarding`, `backend` and the probe.

Traps, found by experiment with libnftables 1.0.6:
- Release 1.0.6 lists a table that has flags (dormant, owner) from memory that it has freed: cut off at best. So the
  tables are asked for by hand, and if any of the family has flags the pieces are listed without their tables.
- `list table` and `list chain` fetch every element of every map of the table first, terse or not (75 ms at 10,000);
  only a terse `list ruleset` does not (0.3 ms). So this is the usual question; `nft_elements` reads elements.
- `add element` fetches none: 0.2 ms whether the map holds 100 or 30,000. All commands of one call are one transaction.
- A commit that deletes waits for one RCU grace period, 8 to 16 ms without work; one that only adds does not wait.
- Its JSON parser drops the counters of elements without a word, so what shall start from a number is written as text.
- The library calls exit() where it cannot open its socket. So one is opened here before it tries.
- Nobody promises that two contexts may work at the same time: one call at a time in the whole process.
"""

from __future__ import annotations

import ctypes
import errno
import json
import re
import socket
import struct
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from agent.errors import KernelError
from agent.kernel.netlink import HEADER_BYTES, NETLINK_NETFILTER, ListingRefused, Netlink, attributes, message

LIBRARY = "libnftables.so.1"
FAMILY = "ip"
# linux/netfilter/nf_tables.h
_GET_TABLES = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_OF_IPV4 = struct.pack("=BBH", socket.AF_INET, 0, 0)  # nfgenmsg
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_NO_NF_TABLES = (errno.EINVAL, errno.EOPNOTSUPP)  # what a kernel without them answers
# nftables/libnftables.h
_OUTPUT_JSON = 1 << 4
_OUTPUT_TERSE = 1 << 11

_ERROR = re.compile(r"Error: (.*)")
_one_at_a_time = threading.Lock()


def listing(table: str) -> list[dict[str, Any]]:
    """The objects of a table, and perhaps of others, as libnftables-json(5) has them, without elements.

    Empty where there is no such table. While any table of the family has flags, named counters and the like are not
    in it. Raises KernelError.
    """
    tables = _tables()
    if table not in tables:
        return []
    if not any(tables.values()):
        return _ask(f"list ruleset {FAMILY}")
    objects: list[dict[str, Any]] = [{"table": {"family": FAMILY, "name": table, "flags": tables[table]}}]
    for kind in ("maps", "sets", "chains"):
        objects += _ask(f"list {kind} {FAMILY}")
    chains = [one["chain"]["name"] for one in objects if one.get("chain", {}).get("table") == table]
    for chain in chains:
        objects += [one for one in _ask(f"list chain {FAMILY} {table} {chain}") if "rule" in one]
    return objects


def has_table(table: str) -> bool:
    """Without the library; False too where the kernel has no nf_tables. Raises KernelError."""
    try:
        return table in _tables()
    except KernelError as error:
        if error.retry:
            raise
        return False


def check() -> None:
    """Raises KernelError where library or kernel cannot do it."""
    _tables()
    _ask(f"list chains {FAMILY}")


def _ask(question: str) -> list[dict[str, Any]]:
    text = _run(question, _OUTPUT_JSON | _OUTPUT_TERSE)
    try:
        objects: list[dict[str, Any]] = json.loads(text)["nftables"]
    except ValueError as error:
        raise KernelError(f"nftables: libnftables listed something else than JSON: {text[-60:]!r}") from error
    return objects


def _tables() -> dict[str, int]:
    """The tables of the family with their flags. Raises KernelError, without retry where there is no nf_tables."""
    _check_socket()
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            found = [attributes(one, HEADER_BYTES + 4) for one in netlink.dump(message(_GET_TABLES, 0, _OF_IPV4))]
    except ListingRefused as error:
        raise KernelError(f"nftables: {error}", retry=error.errno not in _NO_NF_TABLES) from error
    names = (one.get(_TABLE_NAME, b"").rstrip(b"\0").decode(errors="surrogateescape") for one in found)
    return dict(zip(names, (int.from_bytes(one.get(_TABLE_FLAGS, b""), "big") for one in found), strict=True))


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
                raise KernelError(f"nftables: {words}")
            return bytes(library.nft_ctx_get_output_buffer(context) or b"").decode(errors="surrogateescape")
        finally:
            library.nft_ctx_free(context)


def _words(told: bytes | None, text: str) -> str:
    """What the library says. It does not tell which line it means: of several it quotes the first, whatever failed."""
    errors = _ERROR.findall((told or b"").decode(errors="replace"))
    lines = text.splitlines()
    about = lines[0][:60] if len(lines) == 1 else f"one of {len(lines)} commands"
    return f"{errors[0] if errors else 'failed without a reason'} ({about})"


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
