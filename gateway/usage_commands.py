"""`wirelane-gateway usage`: what accounts used in a month, deleted ones too. Called by the command line.

Nothing but the table goes to standard output.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from gateway.account_file import guarded
from gateway.errors import ConfigError, NotFound
from gateway.model import AccountUsage
from gateway.store import Store, settings, usage

Options = argparse.Namespace
MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
COLUMNS = ("account", "server", "deleted", "download", "upload")


async def show_usage(store: Store, options: Options) -> None:
    zone = ZoneInfo(await store.read(settings.time_zone))
    year, month = _month(options.month, zone)
    found = await store.read(lambda tx: usage.of_month(tx, year, month, options.account))
    if options.account and not found:
        raise NotFound(f"There is no account {options.account}, and no usage of a deleted one in {year}-{month:02}")
    rows = [_row(one, zone) for one in found]
    sys.stdout.write(_csv(rows) if options.csv else _json(rows) if options.json else _table(rows))


def _month(text: str | None, zone: ZoneInfo) -> tuple[int, int]:
    if text is None:
        now = datetime.now(zone)
        return now.year, now.month
    found = MONTH.fullmatch(text)
    if found is None:
        raise ConfigError([f"--month {text}: must be a year and a month, such as 2026-01"])
    return int(found[1]), int(found[2])


def _row(one: AccountUsage, zone: ZoneInfo) -> tuple[str, str, str, int, int]:
    deleted = "" if one.deleted is None else f"{datetime.fromtimestamp(one.deleted, zone):%Y-%m-%d}"
    return one.name, one.server, deleted, one.download, one.upload


def _csv(rows: Sequence[tuple[str, str, str, int, int]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((guarded(row[0]), guarded(row[1]), *row[2:]) for row in rows)
    return text.getvalue()


def _json(rows: Sequence[tuple[str, str, str, int, int]]) -> str:
    return json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=1) + "\n"


def _table(rows: Sequence[tuple[str, str, str, int, int]]) -> str:
    lines = [tuple(map(str, row)) for row in rows]
    titles = ("ACCOUNT", "SERVER", "DELETED", "DOWNLOAD", "UPLOAD")
    total = ("total", "", "", str(sum(row[3] for row in rows)), str(sum(row[4] for row in rows)))
    widths = [max(len(line[column]) for line in (titles, total, *lines)) for column in range(len(titles))]
    table = [titles, *((name, server, deleted or "-", down, up) for name, server, deleted, down, up in lines), total]
    return "".join(
        "  ".join(
            f"{text:>{width}}" if column > 2 else f"{text:{width}}"
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in table
    )


def add_usage(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    sentence = "Show what accounts used in a month, in bytes; deleted ones too, with the day they went."
    command = commands.add_parser("usage", help=sentence, description=sentence)
    command.add_argument("--month", metavar="YYYY-MM", help="default: the current one")
    command.add_argument("--account", metavar="NAME", help="only accounts of this name, the deleted ones too")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="for a spreadsheet")
    form.add_argument("--json", action="store_true", help="for a program")
    return command
