"""`wirelane-gateway account import` and `account export`: files, progress and the summary around gateway/bulk.py.

Nothing but an export goes to standard output. Files are opened by `prepare_*`, before the command line becomes the user
that the database belongs to: what root may read or write, that user may not. Called by the command line.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from gateway.account_file import COLUMNS, Lines, format_of, open_for_reading, open_private, take_back
from gateway.bulk import Counts, Refusal, export_accounts, import_accounts
from gateway.config import Config
from gateway.errors import ConfigError, OutputLost
from gateway.model import Account
from gateway.progress import Progress, explain

Options = argparse.Namespace
TOLD_REFUSALS = 20  # on standard error; the others are counted, or in the file of --errors


# -- import -----------------------------------------------------------------------------------------------------------


def prepare_import(options: Options) -> None:
    """Opens the files. Raises ConfigError."""
    options.format = format_of(options.file, options.format)
    options.source = open_for_reading(options.file)
    try:
        if options.errors and os.path.exists(options.errors) and os.path.samefile(options.file, options.errors):
            raise ConfigError([f"{options.errors}: --errors names the very file that is imported"])
        options.refusals = open_private(options.errors, overwrite=True) if options.errors else None
    except BaseException:
        options.source.close()
        raise


def account_import(config: Config, options: Options) -> int:
    with options.source as source, _closing(options.refusals) as refusals:
        return asyncio.run(_import(config, options, source, refusals))


async def _import(config: Config, options: Options, source: BinaryIO, refusals: BinaryIO | None) -> int:
    from gateway.wiring import opened_creation

    lines, report = Lines(source, options.format), _Refusals(refusals, options.errors)
    size, counts, progress = _size(source), Counts(), Progress("rehearsed" if options.dry_run else "imported")

    def show(now: Counts) -> None:
        progress.show(now.lines, lines.read_bytes / size if size else None, f"{now.refused} refused")

    try:
        async with opened_creation(config, rehearsal=options.dry_run) as (store, creation):
            counts = await import_accounts(store, creation, lines, report.add, show)
    except asyncio.CancelledError:
        progress.clear()
        explain("interrupted: what was imported stays; run the same command again for the rest")
        raise
    progress.clear()
    report.end()
    explain(_summary(counts, progress.seconds, is_rehearsal=options.dry_run))
    return 1 if counts.refused else 0


def _summary(counts: Counts, seconds: float, *, is_rehearsal: bool) -> str:
    created = "would be created" if is_rehearsal else "created"
    rate = f"{counts.lines / seconds:.0f} a second" if seconds > 0 else "at once"
    return (
        f"{counts.lines} accounts in the file: {counts.created} {created}, {counts.there} were there already, "
        f"{counts.refused} refused; {seconds:.1f} s ({rate})" + ("; nothing was changed" if is_rehearsal else "")
    )


def _size(file: BinaryIO) -> int:
    """0 = nobody knows: a pipe."""
    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


class _Refusals:
    """The lines that were not done: all of them in the file, if there is one, else the first on standard error."""

    def __init__(self, file: BinaryIO | None, path: str) -> None:
        self._output = _Output(file, path) if file is not None else None
        self._path = path
        self._count = 0
        self._write("line", "field", "error")

    def add(self, refusal: Refusal) -> None:
        self._count += 1
        self._write(str(refusal.line), refusal.field, refusal.text)
        if self._output is None and self._count <= TOLD_REFUSALS:
            about = f"{refusal.field}: " if refusal.field else ""
            explain(f"line {refusal.line}: {about}{refusal.text}")

    def end(self) -> None:
        if self._output is not None:
            self._output.end()
        if self._output is not None and self._count:
            explain(f"{self._count} lines were refused: see {self._path}")
        elif self._count > TOLD_REFUSALS:
            explain(f"and {self._count - TOLD_REFUSALS} more lines: --errors FILE lists all of them")

    def _write(self, *cells: str) -> None:
        if self._output is not None:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerow(cells)
            self._output.write(text.getvalue().encode())


# -- export -----------------------------------------------------------------------------------------------------------


def prepare_export(options: Options) -> None:
    """Opens the file. Raises ConfigError."""
    if options.file is None:
        options.format = options.format or "csv"
        options.target = None
    else:
        options.format = format_of(options.file, options.format)
        options.target = open_private(options.file, overwrite=options.force)


def account_export(config: Config, options: Options) -> int:
    left_out: list[Account] = []
    if options.target is None:
        if sys.stdout.isatty():
            explain("what follows holds passwords, private and preshared keys")
        output = _Output(sys.stdout.buffer, "standard output")
        count = asyncio.run(_export(config, options.format, output, left_out))
        output.end()
    else:
        output = _Output(options.target, options.file)
        with _closing(options.target):
            try:
                count = asyncio.run(_export(config, options.format, output, left_out))
                output.end()
            except BaseException:
                take_back(options.target, options.file)
                raise
    where = options.file or "standard output"
    explain(f"{count} accounts are in {where}, with their passwords, private and preshared keys: keep it safe")
    if left_out:
        names = ", ".join(account.name for account in left_out[:TOLD_REFUSALS])
        more = f" and {len(left_out) - TOLD_REFUSALS} more" if len(left_out) > TOLD_REFUSALS else ""
        explain(f"left out, because their secrets cannot be decrypted: {names}{more}")
    return 1 if left_out else 0


@contextmanager
def _closing(file: BinaryIO | None) -> Iterator[BinaryIO | None]:
    try:
        yield file
    finally:
        if file is not None:
            with suppress(OSError):  # of what could not be written, and was told
                file.close()


class _Output:
    """Its own errors are not the database's, in whose transaction it is written."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path

    def write(self, data: bytes) -> None:
        with self._explained():
            self._file.write(data)

    def end(self) -> None:
        with self._explained():
            self._file.flush()
            if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                os.fsync(self._file.fileno())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputLost(self._path, error) from error


async def _export(config: Config, format_name: str, target: _Output, left_out: list[Account]) -> int:
    from gateway.wiring import opened_store

    progress = Progress("exported")

    def show(done: int, total: int) -> None:
        progress.show(done, done / total if total else None)

    try:
        async with opened_store(config) as store:
            return await export_accounts(store, format_name, target.write, show, left_out.append)
    finally:
        progress.clear()


IMPORT_HELP = (
    "Create the accounts of a file. One line is one account, in the words of the API: "
    f"{', '.join(COLUMNS)}. name and wg_name are needed; what else is empty or absent is generated. "
    "May be interrupted and run again: what is there already exactly as asked is passed over, nothing is ever changed."
)
EXPORT_HELP = (
    "Write all accounts to a file that `account import` reads. It holds passwords, private and preshared keys."
)


def add_commands(accounts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = accounts.add_parser("import", help="Create the accounts of a file.", description=IMPORT_HELP)
    command.set_defaults(call=account_import, prepare=prepare_import)
    command.add_argument("file", metavar="FILE", help="CSV with a header, or JSON Lines")
    command.add_argument("--format", choices=("csv", "jsonl"), help="default: what FILE ends with")
    command.add_argument("--dry-run", action="store_true", help="say what would happen, change nothing")
    command.add_argument("--errors", metavar="FILE", help="write every refused line there: line, field, error (CSV)")
    command = accounts.add_parser("export", help="Write all accounts to a file.", description=EXPORT_HELP)
    command.set_defaults(call=account_export, prepare=prepare_export)
    command.add_argument("file", metavar="FILE", nargs="?", help="made with mode 0600; default: standard output")
    command.add_argument("--format", choices=("csv", "jsonl"), help="default: what FILE ends with; csv without FILE")
    command.add_argument("--force", action="store_true", help="overwrite FILE")
