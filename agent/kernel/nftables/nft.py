"""The way to nftables: libnftables inside this process; questions answered in JSON, commands in nft(8)'s language.

Owns the library's context while a call lasts, and nothing afterwards: a context holds a netlink socket of the network
namespace of the thread that made it, and a cache, so every call makes its own (0.03 ms). It never decides what a rule
should be, and never runs a command. Called by whoever owns a table in this room, and by the trials.

Traps, found by experiment with libnftables 1.0.6:
- Release 1.0.6 lists a table that has flags (dormant, owner) from memory that it has freed: cut off at best. So the
  tables are asked for by hand, and if any of the family has flags the pieces are listed without their tables.
- `list table` and `list chain` fetch every element of every map of the table first, terse or not (75 ms at 10,000);
  only a terse `list ruleset` does not (0.3 ms). So this is the usual question; `readout` reads elements.
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
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from agent.errors import KernelError
from agent.kernel.netlink import HEADER_BYTES, NETLINK_NETFILTER, ListingRefused, Netlink, attributes, message

LIBRARY = "libnftables.so.1"
FAMILY = "ip"
# linux/netfilter/nf_tables.h
_GET_TABLES = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
_GET_GENERATION, _GENERATION = 10 << 8 | 16, 1  # NFT_MSG_GETGEN, NFTA_GEN_ID
_OF_ALL = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)  # nfgenmsg
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_DORMANT = 1
_GET_RULES = 10 << 8 | 7
_RULE_HANDLE, _RULE_EXPRESSIONS = 3, 4
_EXPR_NAME, _EXPR_DATA = 1, 2
# linux/netfilter/nf_tables_compat.h; xt_conntrack.h: where match_flags, invert_flags and state_mask are
_MATCH_NAME, _MATCH_REVISION, _MATCH_INFO = 1, 2, 3
_CT_FLAGS_AT = 146

Place = tuple[str, str, str, int]  # of a rule: family, table, chain, handle
_NO_NF_TABLES = (errno.EINVAL, errno.EOPNOTSUPP)  # what a kernel without them answers
# nftables/libnftables.h
_OUTPUT_JSON = 1 << 4
_OUTPUT_TERSE = 1 << 11

_ERROR = re.compile(r"Error: (.*)")
_one_at_a_time = threading.Lock()


def listing(table: str, family: str = FAMILY) -> list[dict[str, Any]]:
    """The objects of a table, and perhaps of others, as libnftables-json(5) has them, without elements.

    Empty where there is no such table. While any table of the family has flags, named counters and the like are not
    in it. Raises KernelError.
    """
    tables = _tables(family)
    if table not in tables:
        return []
    if not any(tables.values()):
        return _ask(f"list ruleset {family}")
    objects: list[dict[str, Any]] = [{"table": {"family": family, "name": table, "flags": tables[table]}}]
    for kind in ("maps", "sets", "chains"):
        objects += _ask(f"list {kind} {family}")
    chains = [one["chain"]["name"] for one in objects if one.get("chain", {}).get("table") == table]
    for chain in chains:
        objects += [one for one in _ask(f"list chain {family} {table} {chain}") if "rule" in one]
    return objects


def elements(table: str, name: str, family: str = FAMILY) -> list[Any]:
    """Of a map, as libnftables-json(5) has them. Raises KernelError."""
    text = _run(f"list map {family} {table} {name}", _OUTPUT_JSON)
    found = (one["map"] for one in json.loads(text)["nftables"] if "map" in one)
    return [element for one in found for element in one.get("elem", [])]


def everything() -> list[dict[str, Any]]:
    """Of all families, whoever made it, without elements. Raises KernelError."""
    tables = _tables_of_all()
    if not any(flags for _, _, flags in tables):
        return _ask("list ruleset")
    objects = _ask("list chains") + _ask("list flowtables")
    asleep = {(family, name) for family, name, flags in tables if flags & _DORMANT}
    objects = [one for one in objects if not asleep & {(of.get("family"), of.get("table")) for of in one.values()}]
    for chain in [one["chain"] for one in objects if "chain" in one]:
        question = f"list chain {chain['family']} {chain['table']} {chain['name']}"
        objects += [one for one in _ask(question) if "rule" in one]
    return objects


def conntrack_states() -> dict[Place, list[int]]:
    """What the conntrack matches in rules of iptables-nft ask for, which a listing does not say: the masks of states,
    in the order of the rule; -1 = something else too. Raises KernelError."""
    found: dict[Place, list[int]] = {}
    with Netlink(NETLINK_NETFILTER) as netlink:
        for one in netlink.dump(message(_GET_RULES, 0, _OF_ALL)):
            family, rule = _FAMILIES.get(one[HEADER_BYTES], ""), attributes(one, HEADER_BYTES + 4)
            masks = [_state_mask(each) for each in _pieces(rule.get(_RULE_EXPRESSIONS, b""))]
            if asked := [mask for mask in masks if mask is not None]:
                place = family, _text(rule[1]), _text(rule[2]), int.from_bytes(rule[_RULE_HANDLE], "big")
                found[place] = asked
    return found


def _pieces(data: bytes) -> Iterator[bytes]:
    """The elements of a list, which all have the same type."""
    at = 0
    while at + 4 <= len(data):
        size = max(int.from_bytes(data[at : at + 2], sys.byteorder), 4)
        yield data[at + 4 : at + size]
        at += size + 3 & ~3


def _state_mask(expression: bytes) -> int | None:
    """None = it is no conntrack match."""
    piece = attributes(expression)
    match = attributes(piece.get(_EXPR_DATA, b""))
    if piece.get(_EXPR_NAME) != b"match\0" or match.get(_MATCH_NAME, b"").rstrip(b"\0") != b"conntrack":
        return None
    info = match.get(_MATCH_INFO, b"")
    if int.from_bytes(match.get(_MATCH_REVISION, b""), "big") < 2 or len(info) < _CT_FLAGS_AT + 6:
        return -1
    asks, inverted, mask = struct.unpack_from("=HHH", info, _CT_FLAGS_AT)
    if asks != 1:  # XT_CONNTRACK_STATE alone
        return -1
    return int(~mask & 0xFFFF if inverted & 1 else mask)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="surrogateescape")


def has_table(table: str, family: str = FAMILY) -> bool:
    """Without the library; False too where the kernel has no nf_tables. Raises KernelError."""
    try:
        return table in _tables(family)
    except KernelError as error:
        if error.retry:
            raise
        return False


def check() -> None:
    """Raises KernelError where library or kernel cannot do it."""
    _library()
    _tables(FAMILY)
    _ask(f"list chains {FAMILY}")


def _ask(question: str) -> list[dict[str, Any]]:
    text = _run(question, _OUTPUT_JSON | _OUTPUT_TERSE)
    try:
        objects: list[dict[str, Any]] = json.loads(text)["nftables"]
    except ValueError as error:
        raise KernelError(f"nftables: libnftables listed something else than JSON: {text[-60:]!r}") from error
    return objects


def _tables(wanted: str) -> dict[str, int]:
    """The tables of a family with their flags. Raises KernelError, without retry where there is no nf_tables."""
    return {name: flags for family, name, flags in _tables_of_all() if family == wanted}


def _tables_of_all() -> list[tuple[str, str, int]]:
    """(family, name, flags) of each."""
    _check_socket()
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            found = netlink.dump(message(_GET_TABLES, 0, _OF_ALL))
    except ListingRefused as error:
        raise KernelError(f"nftables: {error}", retry=error.errno not in _NO_NF_TABLES) from error
    tables = []
    for one in found:
        of = attributes(one, HEADER_BYTES + 4)
        name, flags = of.get(_TABLE_NAME, b""), int.from_bytes(of.get(_TABLE_FLAGS, b""), "big")
        tables.append((_FAMILIES.get(one[HEADER_BYTES], ""), _text(name), flags))
    return tables


def apply(commands: Sequence[str], *, elements: bool = False) -> None:
    """One transaction: all of the commands or none. `elements`: nothing but elements is changed, so what `state` told
    stays true. Raises KernelError in libnftables' own words."""
    if not commands:
        return
    before = state() if elements else None
    _run("\n".join(commands), 0)
    if before is not None and (now := _generation()) == before.generation + 1:
        before.generation = now


@dataclass(eq=False, slots=True)
class State:
    """Of all tables but for elements that this process has changed itself."""

    generation: int


_states: dict[int, State] = {}  # by network namespace; an agent has one


def state() -> State:
    """The same object as long as nobody has committed anything, but for elements by `apply`. Raises KernelError.

    The kernel counts the commits of a network namespace, whoever makes them. So what was listed need not be listed
    again before every change of an element, which takes 5 to 10 ms beside a few servers. One thing deceives it: a
    commit of others at the same moment that leaves ours nothing to do, for a commit that changes nothing does not
    count. A full pass reads all the same, and what it finds broken is listed anew.
    """
    namespace, generation = _namespace(), _generation()
    found = _states.get(namespace)
    if found is None or found.generation != generation:
        found = _states[namespace] = State(generation)
    return found


def _namespace() -> int:
    """Of this thread. Its inode may be another one's later, its cookie never (Linux 5.14)."""
    _check_socket()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as one:
        try:
            return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return -os.stat("/proc/thread-self/ns/net").st_ino


def _generation() -> int:
    with Netlink(NETLINK_NETFILTER) as netlink:
        said = netlink.ask(message(_GET_GENERATION, 0, _OF_ALL))
    if not isinstance(said, bytes):
        raise KernelError(f"nftables: the kernel does not count its commits: {said}", retry=False)
    return int.from_bytes(attributes(said, HEADER_BYTES + 4)[_GENERATION], "big")


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
