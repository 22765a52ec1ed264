"""The two programs as processes: started, found again by the next agent, ended.

`running.json` says which they are: number and time of start, for numbers are given again. They are nobody's children
after a restart of the agent, so they are asked about in /proc. Where that file is lost they are still ours, and are
found by the files of ours that they run with.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.errors import KernelError
from agent.kernel.ikev2.files import Paths, write

CHARON, RADIUS = "/usr/sbin/charon-systemd", "/usr/sbin/freeradius"
END_SECONDS = 5.0
POLL_SECONDS = 0.02
# Fields of /proc/PID/stat behind the name: ticks in user mode, in the kernel, and when it started, since boot.
IN_USER, IN_KERNEL, STARTED = 11, 12, 19


@dataclass(frozen=True, slots=True)
class Process:
    number: int
    started: int

    def is_alive(self) -> bool:
        """A child is, until it is collected: /proc calls one with threads a zombie while they still end. Of who is
        nobody's child here init is quick to collect, so a zombie has ended, or will in a moment."""
        state, started = _read(self.number)
        if started != self.started:
            return False
        try:
            return os.waitpid(self.number, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return state not in "ZX"

    def worked(self) -> float:
        """Seconds of CPU, all its threads together."""
        words = _words(self.number)
        return (int(words[IN_USER]) + int(words[IN_KERNEL])) / os.sysconf("SC_CLK_TCK") if words else 0.0

    def end(self, patience: float = END_SECONDS) -> None:
        """`patience`: for who may end by himself; one who hangs will not. Raises KernelError."""
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, END_SECONDS)):
            give_up = time.monotonic() + seconds
            if not self.is_alive():
                return
            with suppress(ProcessLookupError):
                os.kill(self.number, number)
            while time.monotonic() < give_up:
                if not self.is_alive():
                    return
                time.sleep(POLL_SECONDS)
        raise KernelError(f"process {self.number} does not end: end it by hand")


def _read(number: int) -> tuple[str, int]:
    """State and start; ("X", 0) = there is none."""
    words = _words(number)
    return (words[0], int(words[STARTED])) if words else ("X", 0)


def _words(number: int) -> list[str]:
    """Of /proc/PID/stat, behind the name, which may be anything, in no alphabet too; [] = there is no process."""
    try:
        return Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def start(arguments: list[str], environment: Mapping[str, str]) -> Process:
    """In a session of its own: a terminal's Ctrl-C is not for it. What it says goes where ours goes."""
    nothing = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)
    aside = (os.POSIX_SPAWN_DUP2, 2, 1)
    environment = {"PATH": os.defpath, **environment}
    try:
        number = os.posix_spawn(
            arguments[0], arguments, environment, file_actions=(nothing, aside), setsid=True, setsigmask=()
        )
    except OSError as error:
        raise KernelError(f"cannot start {arguments[0]}: {error.strerror}", retry=False) from error
    return Process(number, _read(number)[1])


def wait(what: str, process: Process, seconds: float, is_ready: Callable[[], bool]) -> None:
    """Raises KernelError."""
    give_up = time.monotonic() + seconds
    while not is_ready():
        if not process.is_alive():
            raise KernelError(f"{what} has ended at its start; what it said is in this agent's log")
        if time.monotonic() > give_up:
            raise KernelError(f"{what} was started and is not ready after {seconds:.0f} seconds")
        time.sleep(POLL_SECONDS)


def remember(path: Path, processes: Mapping[str, Process]) -> None:
    new = path.with_suffix(".new")
    write(new, json.dumps({name: [one.number, one.started] for name, one in processes.items()}))
    new.replace(path)


def remembered(path: Path) -> dict[str, Process]:
    """{} = none were started here, or nobody knows."""
    try:
        return {name: Process(*map(int, numbers)) for name, numbers in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def running(paths: Paths) -> list[Process]:
    """Whatever runs with our files in this network namespace, remembered or not: by what `start` gave it. Another's
    has other files; and an agent in a container, whose folder may have the same name, another namespace."""
    here = _file("/proc/thread-self/ns/net")
    found = []
    for number in map(int, filter(str.isdigit, os.listdir("/proc"))):
        process = Process(number, _read(number)[1])
        with suppress(OSError):
            if _is_of(number, paths) and _file(f"/proc/{number}/ns/net") == here:
                found.append(process)
    return found


def _is_of(number: int, paths: Paths) -> bool:
    words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    if words[:3] == [os.fsencode(word) for word in radius_words(paths)[:3]]:
        return True
    if words[0] != os.fsencode(CHARON):
        return False
    environment = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    return all(os.fsencode(f"{name}={value}") in environment for name, value in charon_environment(paths).items())


def radius_words(paths: Paths) -> list[str]:
    return [RADIUS, "-d", str(paths.folder), "-n", "radiusd", "-f"]


def charon_environment(paths: Paths) -> dict[str, str]:
    return {"STRONGSWAN_CONF": str(paths.charon)}


def _file(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
