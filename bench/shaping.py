"""Are twenty customers held to what they bought, all at once, among ten thousand?"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from bench.asked import Asked
from bench.box import Box, opened
from bench.table import Bar, Cell, Result, Table
from tests.lab.readings import GOODPUT, TOLERANCE, Direction, measured_rate
from tests.lab.topology import INTERNET

QUESTION = "Rates of 20 accounts measured at once among all others"
CUSTOMERS = 20
SOLD = (3, 4, 5, 6)  # Mbit/s, by turns: together what userspace WireGuard can carry here
SECONDS = 15
ATTEMPTS = 3
PORT = 5_301
DIRECTIONS: tuple[Direction, ...] = ("download", "upload")


def run(asked: Asked) -> Result:
    result = Result("shaping", QUESTION, asked.accounts)
    for backend in asked.backends:
        with opened(asked, backend, clients=CUSTOMERS) as box:
            _measure(box, result)
    result.notes.append(
        f"One TCP connection each, {SECONDS} s, at the same time; goodput against what TCP can carry of the sold rate "
        f"({GOODPUT:.0%}). Where the machine was too busy all are measured again, at most {ATTEMPTS} times; "
        "what is too fast is final."
    )
    return result


def _measure(box: Box, result: Result) -> None:
    box.fill(box.asked.accounts)
    step = box.accounts // CUSTOMERS
    # Every account of a row would lie on the same server: their number and the step are both multiples of four.
    names = [f"a{number * step + number % len(box.servers):05}" for number in range(CUSTOMERS)]
    sold = [SOLD[number // len(SOLD) % len(SOLD)] for number in range(CUSTOMERS)]
    for name, rate in zip(names, sold, strict=True):
        box.lab.rest.put(f"account/{name}", b_download=rate, b_upload=rate)
    clients = [client.name for client in box.lab.plan.clients]
    for client, name in zip(clients, names, strict=True):
        box.lab.connect(client, name)
    box.asked.say(f"{CUSTOMERS} clients are connected")
    rows: list[list[Cell]] = []
    for direction in DIRECTIONS:
        errors = _errors(box, clients, sold, direction)
        worst = max(errors, key=abs)
        rows.append([direction, sum(sold), min(errors) * 100, max(errors) * 100])
        text = f"{box.backend}: {direction}, worst of {CUSTOMERS}"
        bar = Bar(text, abs(worst) * 100, TOLERANCE * 100, "%", judged=box.asked.is_full_size)
        result.bars.append(bar)
    columns = ("direction", "sold in all, Mbit/s", "slowest, %", "fastest, %")
    result.tables.append(Table(f"Off what was sold, {box.backend}", columns, rows))


def _errors(box: Box, clients: list[str], sold: list[int], direction: Direction) -> list[float]:
    """How far each is off, as a share; the best of a few attempts, but never a too fast one left out."""
    errors: list[float] = []
    with _servers(box, len(clients)), ThreadPoolExecutor(len(clients)) as pool:
        for _ in range(ATTEMPTS):
            measure = partial(measured_rate, box.lab, direction=direction, seconds=SECONDS)
            jobs = [pool.submit(measure, client, port=PORT + number) for number, client in enumerate(clients)]
            rates = [job.result() for job in jobs]
            errors = [rate / (GOODPUT * bought) - 1 for rate, bought in zip(rates, sold, strict=True)]
            box.asked.say(f"{direction}: {min(errors):+.1%} to {max(errors):+.1%} off")
            if max(errors) > TOLERANCE or min(errors) >= -TOLERANCE:
                break
    return errors


@contextmanager
def _servers(box: Box, count: int) -> Iterator[None]:
    """An iperf3 server serves one test at a time: one for each client."""
    running = [
        subprocess.Popen(
            box.lab.command(INTERNET, "iperf3", "--server", "--port", str(PORT + number)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(count)
    ]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()
