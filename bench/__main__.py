"""The command line of the benchmarks: `scripts/bench`. Tables on standard output, progress on standard error.

Exit status: 0 every bar held; 1 a bar was missed, or a question could not be answered; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType

from bench.asked import FULL_SIZE, NAME, Asked
from bench.measure import machine
from bench.table import Result
from tests.lab.errors import LabError

# In the order of a whole run: what a box is asked first comes first, what takes longest comes last.
QUESTIONS = (
    *(
        "restore",
        "restart",
        "change",
        "creates",
        "sample",
        "forwarding",
        "listing",
        "shaping",
        "many",
        "fleet",
        "ikev2",
        "memory",
    ),
)
BACKENDS = {"iptables": ("iptables",), "nftables": ("nftables",), "both": ("iptables", "nftables")}
LOCKS = Path("/run/lock")
RESULTS = Path(__file__).parent / "results"


def _module(name: str) -> ModuleType:
    return import_module(f"bench.{name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Answers to how fast, how much, how many.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"questions (default: all): {', '.join(QUESTIONS)}")
    parser.add_argument("--accounts", type=int, default=FULL_SIZE, help=f"default: {FULL_SIZE}")
    parser.add_argument("--backend", choices=BACKENDS, default="both", help="of the marks (default: both)")
    parser.add_argument("--minutes", type=float, default=20.0, help="of changes in `memory` (default: 20)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    parser.add_argument("--name", default=NAME, help=f"of the lab (default: {NAME}); one that is there is replaced")
    parser.add_argument("--keep", action="store_true", help="leave the lab of the last question up")
    parser.add_argument("--list", action="store_true", help="print the questions")
    parser.add_argument("--page", action="store_true", help="make docs/performance.md from the JSON files, run nothing")
    return parser


def _answer(name: str, asked: Asked, folder: Path) -> Result:
    asked.say(f"{name}: {_module(name).QUESTION}")
    result: Result = _module(name).run(asked)
    result.machine, result.taken = machine(), datetime.now(UTC).date().isoformat()
    asked.say(f"{name}: written to {result.save(folder)}")
    print(result.text() + "\n", flush=True)
    return result


def _run(names: Sequence[str], asked: Asked, folder: Path) -> int:
    missed, broken = [], []
    for name in names:
        try:
            result = _answer(name, asked, folder)
        except LabError as failed:
            broken.append(f"{name}: {failed}")
            asked.say(f"{name}: FAILED: {failed}")
            continue
        missed += [f"{name}: {' | '.join(map(str, bar.cells()))}" for bar in result.bars if bar.judged and not bar.held]
    for line in (*broken, *missed):
        print(f"bench: {line}", file=sys.stderr)
    return 1 if missed or broken else 0


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """A lab that is there is taken for a leftover and replaced, so no two runs may use one name. Raises LabError."""
    with (LOCKS / f"wirelane-bench-{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise LabError(f"another run uses the lab {name!r}: wait for its end, or take another --name") from held
        yield


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    names = options.names or QUESTIONS
    if wrong := [name for name in names if name not in QUESTIONS]:
        parser.error(f"no such question: {', '.join(wrong)}")
    if not 10 <= options.accounts <= 34_000:
        parser.error("--accounts: 10-34000, a node has marks for 34,475")
    if options.list:
        print("\n".join(f"{name:10}  {_module(name).QUESTION}" for name in QUESTIONS))
        return 0
    if options.page:
        _module("page").write(options.results)
        return 0
    if os.geteuid() != 0:
        parser.error("a lab is made of network namespaces: run it as root")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    asked = Asked(options.accounts, BACKENDS[options.backend], options.minutes, options.name, options.keep)
    try:
        with _alone(options.name):
            return _run(names, asked, options.results)
    except LabError as failed:
        print(f"bench: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
