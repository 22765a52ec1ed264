"""How fast the agent answers while it does something else: a Status call every few milliseconds over one connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from bench.box import NODE, Box
from protos.agent.v1 import agent_pb2 as pb
from protos.agent.v1 import agent_pb2_grpc
from tests.lab.services import agent_target

PAUSE_SECONDS = 0.005
CALL_SECONDS = 5.0


@contextmanager
def answers(box: Box) -> Iterator[list[float]]:
    """A list that fills with how long each call took, in ms. Calls before the agent is there do not count."""
    taken: list[float] = []
    enough = threading.Event()
    thread = threading.Thread(target=_ask, args=(agent_target(box.lab.host(NODE), box.lab.state), taken, enough))
    thread.start()
    try:
        yield taken
    finally:
        enough.set()
        thread.join()


def _ask(target: str, taken: list[float], enough: threading.Event) -> None:
    with grpc.insecure_channel(target) as channel:
        stub = agent_pb2_grpc.AgentStub(channel)
        while not enough.wait(PAUSE_SECONDS):
            began = time.perf_counter()
            try:
                stub.Status(pb.StatusRequest(), timeout=CALL_SECONDS)
            except grpc.RpcError:
                continue
            taken.append((time.perf_counter() - began) * 1e3)
