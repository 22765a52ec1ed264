"""Accounts as lines of a file, CSV or JSON Lines: opened, read and written.

Owns the two spellings, what a broken line is, and the modes of files (they hold secrets). Never judges a value: that is
fields.py's. Called by gateway/bulk.py and the command line.

One line is one account, whatever is in it: no value of an account holds a line break, so a quote that is never closed,
bytes that are no text or a line without end spoil their own line and nothing after it. Nothing is kept of a line that
was read, so the length of a file is of no matter.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from gateway.errors import ConfigError, InvalidValue
from gateway.fields import json_form
from gateway.model import Account

COLUMNS = (
    *("name", "username", "wg_name", "allowed_IPs", "b_download", "b_upload"),
    *("password", "private_key", "public_key", "status", "preshared_key", "allowed_IPs_ipv6"),
)
FORMATS = ("csv", "jsonl")
MAX_LINE = 65_536  # bytes; as the body of a call
KNOWN = f"only {', '.join(COLUMNS)}"
_SPELLINGS = {column.lower(): column for column in (*COLUMNS, "mangle")}


@dataclass(frozen=True, slots=True)
class Line:
    """`number` from 1, as editors count. A line with a `problem` has no `form`."""

    number: int
    form: Mapping[str, str] = field(default_factory=dict)
    problem: InvalidValue | None = None


# -- files --------------------------------------------------------------------------------------------------------


def format_of(path: str, named: str | None) -> str:
    """The named one, else what the file's name ends with. Raises ConfigError."""
    found = named or Path(path).suffix.removeprefix(".").lower()
    if found not in FORMATS:
        raise ConfigError([f"{path}: is it CSV or JSON Lines? Name the file so, or give --format csv or jsonl"])
    return found


def open_for_reading(path: str) -> BinaryIO:
    """The caller closes it."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ConfigError([f"{path}: Is a directory"])
    return file


def open_private(path: str, *, overwrite: bool) -> BinaryIO:
    """For writing: a new file, ours and readable for nobody else, whatever had that name before.

    A link is replaced and never followed, and so is a file of somebody else's. Standard output and terminals are
    written to. A pipe with a name is refused: nobody may ever read it, and to open it is to wait for who does.
    """
    try:
        return open(_open_private(path, overwrite), "wb")
    except FileExistsError:
        raise ConfigError([f"{path}: it exists already; --force overwrites it"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None


def _open_private(path: str, overwrite: bool) -> int:
    _check_kind(path)
    if _is_stream(path):
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    if not overwrite or not os.path.lexists(path):
        return os.open(path, flags, 0o600)
    # Renamed at once and filled then: by the end the command line is another user, who may not rename here.
    fresh = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, flags, 0o600)
    try:
        os.rename(fresh, path)
    except BaseException:
        os.close(descriptor)
        os.unlink(fresh)
        raise
    return descriptor


def _check_kind(path: str) -> None:
    try:
        found = os.lstat(path).st_mode
    except OSError:
        return
    if stat.S_ISDIR(found):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not (stat.S_ISREG(found) or stat.S_ISLNK(found) or stat.S_ISCHR(found)):
        raise OSError(errno.EINVAL, "it is no file; what is written to standard output can be led anywhere")


def _is_stream(path: str) -> bool:
    """A terminal or another character device, or a name for a stream such as /dev/stdout, wherever that leads."""
    if os.path.dirname(os.path.abspath(path)) in ("/dev", "/dev/fd", f"/proc/{os.getpid()}/fd", "/proc/self/fd"):
        return True
    try:
        return stat.S_ISCHR(os.lstat(path).st_mode)
    except OSError:
        return False


def take_back(file: BinaryIO, path: str) -> None:
    """What is half written, and holds secrets. Emptied at least, where this user may not remove it."""
    with suppress(OSError):  # that it could not be written is told already
        kept = os.fstat(file.fileno())
        if stat.S_ISREG(kept.st_mode):
            os.ftruncate(file.fileno(), 0)
            if os.path.samestat(kept, os.lstat(path)):
                os.unlink(path)


# -- cells that a spreadsheet would run -----------------------------------------------------------------------------

# Where a cell begins: its own start, and behind what another reader than ours takes for the end of a cell or a line.
_BEGINS = r"(?='*[=+\-@\t\r＝＋－＠])"  # the wide ones too: some take them for the others
_UNGUARDED = re.compile(rf"(^|[;\t\r\n]){_BEGINS}")
_GUARDED = re.compile(rf"(^|[;\t\r\n])'{_BEGINS}")


def guarded(cell: str) -> str:
    """With a quote before whatever a spreadsheet would take for a formula, also one that reads the file with another
    separator. `unguarded` takes exactly that away."""
    return _UNGUARDED.sub(r"\1'", cell)


def unguarded(cell: str) -> str:
    return _GUARDED.sub(r"\1", cell)


# -- reading ------------------------------------------------------------------------------------------------------


class Lines:
    """The lines of a file that have something in them. Raises ConfigError at a header that cannot be right."""

    def __init__(self, file: BinaryIO, format_name: str) -> None:
        self._file = file
        self._format = format_name
        self.read_bytes = 0

    def __iter__(self) -> Iterator[Line]:
        numbered = ((number, text) for number, text in self._texts() if text is None or text.strip())
        return self._csv(numbered) if self._format == "csv" else (self._json(*each) for each in numbered)

    def _texts(self) -> Iterator[tuple[int, str | None]]:
        """Line by line; None = it is too long, or no UTF-8."""
        number = 0
        while raw := self._file.readline(MAX_LINE + 1):
            number += 1
            self.read_bytes += len(raw)
            is_whole = len(raw) <= MAX_LINE
            while len(raw) > MAX_LINE and not raw.endswith(b"\n"):  # to its end
                raw = self._file.readline(MAX_LINE + 1)
                self.read_bytes += len(raw)
            try:
                # Spreadsheets put a byte order mark before the first line.
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8") if is_whole else None
            except UnicodeDecodeError:
                text = None
            yield number, text

    # -- CSV --

    def _csv(self, lines: Iterator[tuple[int, str | None]]) -> Iterator[Line]:
        header = next(lines, None)
        if header is None:
            return
        number, text = header
        delimiter = max(",;\t", key=(text or "").count)
        columns = self._columns(number, _cells(text, delimiter))
        for number, text in lines:
            cells = _cells(text, delimiter)
            if cells is None:
                yield _broken(number, "a CSV line in UTF-8, quotes closed")
            elif not any(map(str.strip, cells)):
                continue  # what spreadsheets leave of an empty row
            elif len(cells) != len(columns):
                yield _broken(number, f"{len(columns)} values, as the header, it has {len(cells)}")
            else:
                yield Line(number, dict(zip(columns, map(unguarded, cells), strict=True)))

    def _columns(self, number: int, names: Sequence[str] | None) -> list[str]:
        """The v1 names. A column that is not understood would be lost in silence, on every line."""
        columns = [_column(name) for name in names or ()]
        missing = [column for column in ("name", "wg_name") if column not in columns]
        if missing:
            raise ConfigError([f"line {number}: a header is needed, with the columns {', '.join(missing)}"])
        if unknown := [name for name, column in zip(names or (), columns, strict=True) if not column and name.strip()]:
            raise ConfigError([f"line {number}: columns that are not understood: {_listed(unknown)} ({KNOWN})"])
        if double := sorted({column for column in columns if column and columns.count(column) > 1}):
            raise ConfigError([f"line {number}: columns that are there twice: {', '.join(double)}"])
        return columns

    # -- JSON Lines --

    def _json(self, number: int, text: str | None) -> Line:
        try:
            form = json_form(text or "")
        except (ValueError, RecursionError):
            return _broken(number, "a JSON object of texts and numbers, in UTF-8")
        if unknown := [key for key in form if not _column(key)]:
            return Line(number, problem=InvalidValue(f"Unknown field {_listed(unknown)} ({KNOWN})"))
        return Line(number, {_column(key): value for key, value in form.items()})


def _column(name: str) -> str:
    """The v1 name; "" = it is none."""
    return _SPELLINGS.get(name.strip().lower(), "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name.strip()[:40]) for name in names[:10])


def _cells(text: str | None, delimiter: str) -> list[str] | None:
    try:
        return None if text is None else next(csv.reader([text.rstrip("\r\n")], delimiter=delimiter, strict=True))
    except csv.Error:
        return None


def _broken(number: int, right: str) -> Line:
    return Line(number, problem=InvalidValue(f"Malformed line (only {right})"))


# -- writing ------------------------------------------------------------------------------------------------------


def header(format_name: str) -> bytes:
    return _csv_lines([COLUMNS]) if format_name == "csv" else b""


def written(accounts: Sequence[Account], format_name: str) -> bytes:
    """The accounts' lines, with their secrets."""
    if format_name == "csv":
        return _csv_lines(tuple(map(guarded, _cells_of(account))) for account in accounts)
    objects = (dict(zip(COLUMNS, _cells_of(account), strict=True)) for account in accounts)
    return "".join(f"{json.dumps(each, separators=(',', ':'))}\n" for each in objects).encode()


def _cells_of(account: Account) -> tuple[str, ...]:
    """In the order of COLUMNS."""
    return (
        account.name,
        account.username,
        account.server,
        str(account.address),
        str(account.download),
        str(account.upload),
        account.password.reveal(),
        account.private_key.reveal(),
        account.public_key,
        "enable" if account.enabled else "disable",
        account.preshared_key.reveal(),
        str(account.address_ipv6 or ""),
    )


def _csv_lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
