from __future__ import annotations

import os
import sys
import time

import pytest

from agent.kernel.ikev2 import programs

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
