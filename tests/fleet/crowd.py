"""Many creates at once through several gateways, and whether every acknowledged one is in its node's kernel, once."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.fleet.verdicts import peers
from tests.lab.errors import LabError
from tests.lab.lab import Lab
from tests.lab.processes import wait_until

THREADS = 16
FAILED_SECONDS = 0.5  # a caller that failed does not come back at once
Made = dict[str, dict[str, str]]


def create(lab: Lab, servers: list[str], count: int, half_way: Callable[[], None]) -> Made:
    """So many creates, in turn through all gateways; `half_way` runs in the middle of them. The acknowledged ones."""
    made: Made = {}
    lock, reached = threading.Lock(), threading.Event()
    gateways = itertools.cycle([gateway.name for gateway in lab.gateways])
    tasks = [(f"m{number}", servers[number % len(servers)], next(gateways)) for number in range(count)]

    def one(task: tuple[str, str, str]) -> None:
        name, server, gateway = task
        try:
            account = lab.rest_of(gateway).post("account", name=name, wg_name=server)
        except LabError:  # not acknowledged: it may be there or not
            time.sleep(FAILED_SECONDS)
            return
        with lock:
            made[name] = account
            if len(made) >= count // 3:
                reached.set()

    def when_reached() -> None:
        if reached.wait(60.0):
            half_way()

    with ThreadPoolExecutor(THREADS + 1) as threads:
        trouble = threads.submit(when_reached)
        list(threads.map(one, tasks))
        trouble.result()
    return made


def are_in_the_kernel(lab: Lab, made: Made, node_of: dict[str, str], seconds: float) -> float:
    """Waits until each is a peer of its node; how long that took. Raises LabError."""
    began = time.monotonic()
    wanted: dict[str, set[str]] = {node.name: set() for node in lab.plan.nodes}
    for account in made.values():
        wanted[node_of[account["wg_name"]]].add(account["public_key"])

    def all_there() -> bool:
        return all(keys <= peers(lab, node).keys() for node, keys in wanted.items())

    wait_until(all_there, f"{len(made)} acknowledged accounts in the kernels of their nodes", seconds)
    return time.monotonic() - began


def held_twice(made: Made) -> list[str]:
    """Addresses, keys and user names that two of them have."""
    fields = ("allowed_IPs", "public_key", "username")
    counted = Counter((field, account[field]) for account in made.values() for field in fields)
    return [f"{field} {value}" for (field, value), times in counted.items() if times > 1]
