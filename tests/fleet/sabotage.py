"""`python -m tests.fleet.sabotage [NAME ...]`: is the history checker awake? Puts one defect at a time into a copy of
the source, and runs the checker there until it complains. As root; no part of CI: each takes some minutes.

Status 1: a defect was not noticed within its seeds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lab.services import ROOT

MINUTES = "1.5"
SEEDS = ("1", "2", "3")
RUN_SECONDS = 600.0
COPIED = ("agent", "gateway", "protos", "tests", "scripts", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class Edit:
    """`old` stands in `file` once; `new` takes its place."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Sabotage:
    name: str
    edits: tuple[Edit, ...]


SABOTAGES = (
    Sabotage(
        "revision lock off: revisions are taken and committed before the changes that have them",
        (
            Edit(
                "gateway/store/nodes.py",
                '    if not tx.is_sqlite:\n        await tx.one(_lock, {"node": node_id})\n',
                "",
            ),
            Edit(
                "gateway/store/nodes.py",
                '    row = await tx.one(_next, {"node": node_id})\n',
                "    from sqlalchemy.ext.asyncio import create_async_engine\n"
                "    from sqlalchemy.pool import NullPool\n"
                "    async with create_async_engine(tx.connection.engine.url, poolclass=NullPool).begin() as alone:\n"
                '        row = (await alone.execute(_next, {"node": node_id})).first()\n'
                '    await __import__("asyncio").sleep(0.02)\n',
            ),
        ),
    ),
    Sabotage(
        "counter zeroed on read",
        (
            Edit(
                "agent/kernel/iptables/marks.py",
                "        image = tables.read(TABLE)\n        made = stamp_of(image.chains)\n",
                "        image = tables.read(TABLE)\n        made = stamp_of(image.chains)\n"
                '        __import__("subprocess").run(["iptables-legacy", "-w", "-t", "mangle", "-Z"], check=False)\n',
            ),
        ),
    ),
    Sabotage(
        "tombstone skipped",
        (
            Edit(
                "gateway/store/changes.py",
                "int(row.key) for row in gone if",
                "int(row.key) for row in gone[1:] if",
            ),
        ),
    ),
    Sabotage(
        "late snapshot accepted",
        (
            Edit(
                "agent/origin.py",
                "        if self.origin.identity and new.revision < self.revision:\n",
                "        if False:\n",
            ),
        ),
    ),
    Sabotage(
        "a fold counted twice",
        (
            Edit(
                "gateway/store/usage.py",
                "download = {greater}(usage.download, excluded.download),",
                "download = usage.download + excluded.download,",
            ),
        ),
    ),
)


def copy_with(sabotage: Sabotage, to: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to / name)
    for edit in sabotage.edits:
        file = to / edit.file
        text = file.read_text()
        if text.count(edit.old) != 1:
            raise SystemExit(f"{sabotage.name}: {edit.file} has changed; mend the table")
        file.write_text(text.replace(edit.old, edit.new))


def is_noticed(sabotage: Sabotage) -> bool:
    with tempfile.TemporaryDirectory(prefix="wirelane-sabotage-") as folder:
        place = Path(folder)
        place.chmod(0o755)  # the gateways run as nobody
        copy_with(sabotage, place)
        for seed in SEEDS:
            command = [sys.executable, "-m", "tests.fleet", "--seed", seed, "--minutes", MINUTES]
            variables = {"PYTHONPATH": folder, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
            done = subprocess.run(
                command, cwd=folder, env=variables, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
            )
            if "violation(s)" in done.stdout:
                told = [line for line in done.stdout.splitlines() if line.startswith("(")]
                print(f"noticed with seed {seed}: {sabotage.name}\n    " + "\n    ".join(told[:3]), flush=True)
                return True
            if done.returncode:
                raise SystemExit(f"{sabotage.name}: the checker itself failed:\n{done.stderr[-2000:]}")
    print(f"NOT NOTICED: {sabotage.name}", flush=True)
    return False


def main() -> int:
    chosen = [one for one in SABOTAGES if not sys.argv[1:] or any(one.name.startswith(word) for word in sys.argv[1:])]
    missed = [one for one in chosen if not is_noticed(one)]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
