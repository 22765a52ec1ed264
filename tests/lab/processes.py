"""The lab's processes: start them, remember them, find them again, end them.

A process is known by pid *and* start time, so that a pid the kernel has given to somebody else is never touched.
Whatever the lab starts carries LAB_VARIABLE in its environment: a process is found even if its record is lost.
Called by hosts.py, services.py, connect.py and lab.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab.errors import LabError

LAB_VARIABLE = "WIRELANE_LAB_PROCESS"
_children: set[int] = set()  # pids that this very program started and has not reaped yet
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Process:
    """`started`: clock ticks since boot (field 22 of /proc/PID/stat, proc(5)); `boot`: which boot."""

    pid: int
    started: int
    boot: str

    @property
    def alive(self) -> bool:
        return self.boot == _boot() and _started(self.pid) == self.started


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> int | None:
    """None: there is no such process, or only its exit status is left (a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the command name before it may hold blanks and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def process(pid: int) -> Process | None:
    started = _started(pid)
    return None if started is None else Process(pid, started, _boot())


def spawn(lab: str, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Process:
    """Start a daemon in a session of its own; stdout and stderr go to `log`. Does not wait for it to be ready."""
    environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", LAB_VARIABLE: lab, **(environment or {})}
    pid = os.posix_spawnp(
        argv[0],
        list(argv),
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT],  # Python ignores the one; a shell's background job the other
    )
    _children.add(pid)
    started = process(pid)
    if started is None:
        raise LabError(f"{argv[0]} ended at once; see {log}")
    return started


class Records:
    """Which process plays which part ("agent-n1"), one small file each: it survives us, and we survive a crash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, part: str, running: Process) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        scratch = self._folder / f".{part}"
        scratch.write_text(json.dumps(asdict(running)))
        scratch.replace(self._folder / f"{part}.json")

    def load(self, part: str) -> Process | None:
        """The process if it is alive."""
        try:
            found = Process(**json.loads((self._folder / f"{part}.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return found if found.alive else None

    def all(self) -> list[Process]:
        names = [path.stem for path in self._folder.glob("*.json")] if self._folder.is_dir() else []
        return [found for name in names if (found := self.load(name))]


def marked(lab: str) -> list[Process]:
    """Processes that the lab started, and their children."""
    entry = f"{LAB_VARIABLE}={lab}".encode()
    return _matching(lambda pid: entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def inside(namespaces: Iterable[Path]) -> list[Process]:
    """Processes in any of these network namespaces (paths of /run/netns)."""
    inodes = {os.stat(path).st_ino for path in namespaces if path.exists()}
    return _matching(lambda pid: os.stat(f"/proc/{pid}/ns/net").st_ino in inodes)


def _matching(accept: Callable[[int], bool]) -> list[Process]:
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if accept(pid) and (match := process(pid)):
                found.append(match)
    return found


def _ancestry() -> set[int]:
    """We and those who called us: never to be ended, even if they stand inside a lab host."""
    pid, found = os.getpid(), set[int]()
    while pid > 0:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def end(targets: Iterable[Process], how: signal.Signals, deadline: float) -> list[Process]:
    """Send the signal and wait until they are gone, at most `deadline` seconds. Returns those that are still there."""
    spared, until = _ancestry(), time.monotonic() + deadline
    handles: dict[int, Process] = {}
    left = []
    for target in targets:
        if target.pid in spared:
            continue
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(target.pid)
            if target.alive:  # looked at while we hold the pidfd: from here on it cannot become somebody else
                handles[handle] = target
                signal.pidfd_send_signal(handle, how)
            else:
                os.close(handle)
    for handle, target in handles.items():
        ready, _, _ = select.select([handle], [], [], max(0.0, until - time.monotonic()))
        if not ready and target.alive:
            left.append(target)
        os.close(handle)
    reap()
    return left


def reap() -> None:
    """Let go of children that have ended. In a short command init does that; a test session lives on."""
    for pid in list(_children):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _children.discard(pid)


def wait_until(ready: Callable[[], bool], what: str, deadline: float, running: Process | None = None) -> None:
    """Poll `ready` until it holds. Raises LabError after `deadline` seconds, or as soon as `running` has ended."""
    until = time.monotonic() + deadline
    while not ready():
        if running is not None and not running.alive:
            raise LabError(f"{what}: the process has ended")
        if time.monotonic() > until:
            raise LabError(f"{what}: not within {deadline:g} s")
        time.sleep(0.05)
