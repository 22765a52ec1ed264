"""A program for a node: reads what a full sample reads, by the agent's own doors and by ready tools; CPU of each.

Argument: the agent's configuration. Prints one JSON object: seconds of CPU (user and kernel, of the readers), median of
several readings. wireguard-go's own part is told by who calls this.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent import garbage
from agent.config import load_config
from agent.kernel.linux import LinuxKernel
from agent.kernel.trials.backend import choose_backend
from agent.kernel.wireguard.links import choose_mode
from agent.objects import Scope
from agent.parts import CLASSES, LINKS
from bench.measure import median

ROUNDS = 7


def _cpu(read: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS + 1):
        began = time.process_time()
        read()
        times.append(time.process_time() - began)
    return median(times[1:])


def _cpu_of_tools(*commands: list[str]) -> float:
    times = []
    for _ in range(ROUNDS + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for command in commands:
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return median(times[1:])


def main(config_path: str) -> dict[str, dict[str, float]]:
    garbage.calm()  # as the agent does
    config = load_config(Path(config_path))
    kernel = LinuxKernel(choose_mode(config.wireguard), config.uplink, choose_backend(config.marks_backend))
    uplink = kernel.uplink()
    links = sorted(kernel.door(LINKS).read(Scope(frozenset(), uplink)))
    scope = Scope(frozenset(links), uplink)
    agent = {
        "marks": _cpu(kernel.marks.counters),
        "classes": _cpu(lambda: kernel.door(CLASSES).read(scope)),
        "peers": _cpu(lambda: [kernel.peer_states(link) for link in links]),
    }
    tools = {
        "marks": _cpu_of_tools(["iptables-legacy-save", "-c", "-t", "mangle"], ["nft", "list", "ruleset"]),
        "classes": _cpu_of_tools(*(["tc", "-s", "class", "show", "dev", device] for device in scope.devices)),
        "peers": _cpu_of_tools(["wg", "show", "all", "dump"]),
    }
    return {"agent": agent, "tools": tools}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
