"""Accounts as lines of a file, CSV or JSON Lines: opened, read and written.

Owns the two spellings, what a broken line is, and the modes of files (they hold secrets). Never judges a value: that is
fields.py's. Called by gateway/bulk.py and the command line.

One line is one account, whatever is in it: no value of an account holds a line break, so a quote that is never closed,
bytes that are no text or a line without end spoil their own line and nothing after it. Nothing is kept of a line that
was read, so the length of a file is of no matter.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from gateway.errors import ConfigError, InvalidValue
from gateway.fields import IPV6_FIELDS, json_form
from gateway.model import Account

COLUMNS = (
    *("name", "username", "wg_name", "allowed_IPs", "b_download", "b_upload"),
    *("password", "private_key", "public_key", "status"),
)
FORMATS = ("csv", "jsonl")
MAX_LINE = 65_536  # bytes; as the body of a call
MOST_IGNORED = 20  # names of columns that are reported
_SPELLINGS = {column.lower(): column for column in (*COLUMNS, *IPV6_FIELDS, "ipv6")}


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
    """For writing; nobody else can read it, also if it was there before."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if overwrite else os.O_EXCL)
    try:
        descriptor = os.open(path, flags, 0o600)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):  # and not /dev/stdout
                os.fchmod(descriptor, 0o600)
                os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
    except FileExistsError:
        raise ConfigError([f"{path}: it exists already; --force overwrites it"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    return open(descriptor, "wb")


# -- reading ------------------------------------------------------------------------------------------------------


class Lines:
    """The lines of a file that have something in them. Raises ConfigError at a header that cannot be right."""

    def __init__(self, file: BinaryIO, format_name: str) -> None:
        self._file = file
        self._format = format_name
        self.read_bytes = 0
        self.ignored: dict[str, None] = {}  # names of columns that say nothing to us, in order

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
                yield Line(number, dict(zip(columns, cells, strict=True)))

    def _columns(self, number: int, names: Sequence[str] | None) -> list[str]:
        """The v1 names, and others as they are: whoever knows no such field ignores it."""
        columns = [self._column(name) for name in names or ()]
        missing = [column for column in ("name", "wg_name") if column not in columns]
        if missing:
            raise ConfigError([f"line {number}: a header is needed, with the columns {', '.join(missing)}"])
        if double := sorted({column for column in columns if column and columns.count(column) > 1}):
            raise ConfigError([f"line {number}: columns that are there twice: {', '.join(double)}"])
        return columns

    def _column(self, name: str) -> str:
        found = _SPELLINGS.get(name.strip().lower())
        if found is None and name.strip() and len(self.ignored) < MOST_IGNORED:
            self.ignored[name.strip()] = None
        return found or name.strip()

    # -- JSON Lines --

    def _json(self, number: int, text: str | None) -> Line:
        try:
            return Line(number, {self._column(key): value for key, value in json_form(text or "").items()})
        except (ValueError, RecursionError):
            return _broken(number, "a JSON object of texts and numbers, in UTF-8")


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
        return _csv_lines(map(_cells_of, accounts))
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
    )


def _csv_lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
