from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.kernel.ikev2 import programs
from agent.kernel.ikev2.files import Paths

LEADER_GOES_FIRST = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(1,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def state_of(number: int) -> str:
    with open(f"/proc/{number}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_a_child_with_threads_is_collected_however_it_ends() -> None:
    process = programs.start([sys.executable, "-c", LEADER_GOES_FIRST], {})
    give_up = time.monotonic() + 10
    while state_of(process.number) != "Z":
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert process.is_alive()
    while process.is_alive():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    with pytest.raises(ChildProcessError):
        os.waitpid(process.number, os.WNOHANG)


def test_a_number_that_was_given_again_is_another_process() -> None:
    process = programs.start([sys.executable, "-c", "import time; time.sleep(30)"], {})
    try:
        assert not programs.Process(process.number, process.started - 1).is_alive()
        assert process.is_alive()
    finally:
        process.end()


def test_who_works_is_told_from_who_waits() -> None:
    words = [sys.executable, "-c"]
    works, waits = (programs.start([*words, code], {}) for code in ("while True: pass", "import time; time.sleep(30)"))
    try:
        until = time.monotonic() + 20
        while works.worked() < 0.5 and time.monotonic() < until:
            time.sleep(0.05)
        assert works.worked() >= 0.5 > waits.worked()
    finally:
        works.end()
        waits.end()
    assert works.worked() == 0.0


@pytest.mark.parametrize("patience", [0, 0.2])
def test_one_that_is_stopped_ends_all_the_same(patience: float) -> None:
    process = programs.start([sys.executable, "-c", "import time; time.sleep(30)"], {})
    os.kill(process.number, signal.SIGSTOP)
    begun = time.monotonic()
    process.end(patience)
    assert not process.is_alive() and time.monotonic() - begun < 2


@pytest.mark.parametrize("text", ["", "[]", "7", '{"charon": 7}', '{"charon": ["x", 1]}', '{"charon": [1]}', "\0"])
def test_what_was_not_written_by_us_remembers_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "running.json"
    path.write_text(text)
    assert programs.remembered(path) == programs.remembered(tmp_path) == programs.remembered(path / "x") == {}


def test_only_what_runs_with_our_files_is_ours(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    ours = {"STRONGSWAN_CONF": str(paths.charon)}
    hosts = {"STRONGSWAN_CONF": "/etc/strongswan.conf"}
    with fake(programs.CHARON, hosts), fake("/bin/sleep", ours), fake(programs.CHARON, ours) as own:
        assert programs.running(paths) == [own]


def test_who_calls_himself_in_no_alphabet_disturbs_nobody(tmp_path: Path) -> None:
    """Any user of the host may."""
    naming = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'\\xff) \\xfe'); print(flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", naming], stdout=subprocess.PIPE) as odd:
        assert odd.stdout is not None
        odd.stdout.readline()
        assert programs.running(Paths(tmp_path)) == []
        odd.kill()


@contextmanager
def fake(name: str, environment: dict[str, str]) -> Iterator[programs.Process]:
    """One that sleeps and calls itself so."""
    process = subprocess.Popen([name, "30"], executable="/bin/sleep", env=environment)
    try:
        while Path(f"/proc/{process.pid}/cmdline").read_bytes() != f"{name}\0{30}\0".encode():
            time.sleep(0.01)
        yield programs.Process(process.pid, programs._read(process.pid)[1])
    finally:
        process.kill()
        process.wait()
