"""The legacy iptables tables as the kernel gives them: the lock, and readings.

Owns /run/xtables.lock while it is needed, and the socket of a call; works in the network namespace of the calling
thread. Never writes. Called by `xtables`, which does, and by whoever only reads.

Trap: the kernel starts a replaced table with zero counters and gets the old ones added a moment later. A reader without
the lock would see counters fall; so readings take the lock too.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import KernelError
from agent.kernel.iptables.entries import BUILTINS, Image

LOCK = "/run/xtables.lock"
LOCK_SECONDS = 5.0  # how long to wait for it
_LOCK_POLL_SECONDS = 0.01
_TABLE_NAMES = Path("/proc/thread-self/net/ip_tables_names")  # of the calling thread's network namespace
_TRIES = 4  # readings of a table that changes meanwhile

# linux/netfilter_ipv4/ip_tables.h
_SOL_IP = 0
_GET_INFO, _GET_ENTRIES, _GET_REVISION_MATCH = 64, 65, 66
_INFO = struct.Struct("=32sI5I5III")  # name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
_ENTRIES_HEAD = 40  # struct ipt_get_entries: name[32], size, padding
# libiptc.c, struct xtc_handle. Behind socket, flag, list, two iterators, count, index, its size and a flag: info; then
# a pointer to the entries.
_HANDLE_INFO, _HANDLE_ENTRIES = 64, 152

_libc = ctypes.CDLL(None, use_errno=True)


# -- the lock -----------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: str = LOCK, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Holds the lock of iptables. Raises KernelError when it cannot be had within `seconds`."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError(f"iptables: cannot open {path}: {error.strerror}; it has to be writable") from error
    try:
        deadline = time.monotonic() + seconds
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                raise KernelError(
                    f"iptables: {path} was held by another program for {seconds:g} s, typically iptables-legacy -w, "
                    "iptables-legacy-restore, docker or firewalld; will be tried again",
                    retry=True,
                )
            time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# -- reading ------------------------------------------------------------------------------------------------------


def read(table: str) -> Image:
    """The whole table as it is now, counters included. Raises KernelError."""
    with locked():
        return read_locked(table)


def info(table: str) -> bytes:
    """What the kernel says of it as a whole: among others how many rules and how many bytes. Without the lock, so that
    nobody's work looks like a lack. Raises KernelError where this table cannot be had."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            return _read_info(sock, table)
    except OSError as error:
        raise _refused(table, error) from error


def read_locked(table: str) -> Image:
    """For who has the lock; 3 ms and about 4 MB at 21,000 rules."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            for _ in range(_TRIES):
                try:
                    return _read_once(sock, table)
                except BlockingIOError:  # EAGAIN: it grew or shrank since IPT_SO_GET_INFO
                    continue
    except OSError as error:
        raise _refused(table, error) from error
    raise KernelError(f"iptables: the {table} table keeps changing under the reader", retry=True)


def _read_once(sock: socket.socket, table: str) -> Image:
    info = _read_info(sock, table)
    asked = bytearray(_ENTRIES_HEAD + _size(info))
    struct.pack_into("=32sI", asked, 0, table.encode(), _size(info))
    _getsockopt(sock, _GET_ENTRIES, asked)
    del asked[:_ENTRIES_HEAD]
    return Image.parse(asked, _hooks(info))


def _read_info(sock: socket.socket, table: str) -> bytes:
    info = bytearray(table.encode().ljust(_INFO.size, b"\0"))
    _getsockopt(sock, _GET_INFO, info)
    return bytes(info)


def _size(info: bytes) -> int:
    return int(_INFO.unpack(info)[-1])


def _hooks(info: bytes) -> dict[str, tuple[int, int]]:
    _, valid, *numbers, _, _ = _INFO.unpack(info)
    return {chain: (numbers[i], numbers[5 + i]) for i, chain in enumerate(BUILTINS) if valid >> i & 1}


def read_by(handle: int) -> Image:
    """What libiptc has read for a handle (its address): a third of a transaction less than to read it again.

    From a structure that no header promises: only where `is_laid_out` has held for a handle.
    """
    info = ctypes.string_at(handle + _HANDLE_INFO, _INFO.size)
    return Image.parse(ctypes.string_at(_entries_of(handle) + _ENTRIES_HEAD, _size(info)), _hooks(info))


def is_laid_out(handle: int, table: str) -> bool:
    """Does a handle that was just made for this table look as `read_by` thinks? Looked at step by step, so that nothing
    is followed that is no pointer. Under the lock."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            info, image = _read_info(sock, table), _read_once(sock, table)
    except OSError:
        return False
    if ctypes.string_at(handle + _HANDLE_INFO, _INFO.size) != info:
        return False
    at, name = _entries_of(handle), table.encode() + b"\0"
    if not at or ctypes.string_at(at, len(name)) != name or ctypes.string_at(at + 32, 4) != info[-4:]:
        return False
    found = read_by(handle)
    return found.chains == image.chains and len(found.blob) == len(image.blob)


def _entries_of(handle: int) -> int:
    return int.from_bytes(ctypes.string_at(handle + _HANDLE_ENTRIES, 8), sys.byteorder)


def _getsockopt(sock: socket.socket, option: int, buffer: bytearray) -> None:
    """socket.getsockopt() cannot pass a question in; here the buffer goes in and comes back filled."""
    length = ctypes.c_uint32(len(buffer))
    view = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    if _libc.getsockopt(sock.fileno(), _SOL_IP, option, view, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _refused(table: str, error: OSError) -> KernelError:
    if error.errno in (errno.EPERM, errno.EACCES):
        reason = "not allowed; CAP_NET_ADMIN and CAP_NET_RAW are needed"
    elif error.errno in (errno.ENOENT, errno.ENOPROTOOPT):
        reason = f"this kernel has no legacy iptables table of this name (module iptable_{table})"
    else:
        return KernelError(f"iptables: cannot read the {table} table: {error.strerror}", retry=True)
    return KernelError(f"iptables: cannot read the {table} table: {reason}", retry=False)


def has_table(table: str) -> bool:
    """Is the table in use in this namespace? To ask for it would make the kernel load it."""
    try:
        return table in _TABLE_NAMES.read_text().split()
    except FileNotFoundError:  # ip_tables is not loaded
        return False
    except OSError as error:
        raise KernelError(f"iptables: cannot read {_TABLE_NAMES}: {error.strerror}") from error


def supports_match(name: str, revision: int) -> bool:
    """Whether the kernel has this match extension; asks as iptables does, which loads the module if there is one."""
    question = bytearray(struct.pack("=29sB", name.encode(), revision))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        try:
            _getsockopt(sock, _GET_REVISION_MATCH, question)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.ENOPROTOOPT):
                return False
            raise KernelError(f"iptables: cannot ask for the match {name}: {error.strerror}") from error
    return True
