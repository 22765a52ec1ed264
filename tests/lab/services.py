"""The programs of a lab: write their configuration, start them, see that they answer. Called by lab.py.

Agents run as root inside their host. The gateways are in gateways.py; whom they run as is told here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.lab.errors import LabError
from tests.lab.hosts import enter, run
from tests.lab.processes import PATH, Process, spawn, wait_until
from tests.lab.topology import INTERNET_ADDRESS, Host

ROOT = Path(__file__).resolve().parents[2]
WEB_PORT = 80
FLEET_PORT = 7443
IPERF_PORTS = (5201, 5202, 5203, 5204)  # an iperf3 server serves one test at a time
START_SECONDS = 30.0
# gRPC's own pause after a refused connection grows from 1 s; we look many times a second.
IMPATIENT = tuple((f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max"))
SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse{status: SERVING}
Settings = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the gateways run as."""

    user: str
    group: str
    uid: int
    gid: int

    @property
    def command(self) -> list[str]:
        """The start of a command line that gives up every privilege."""
        drop = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
        # Without the keep, root's own transitions would have nothing to give back anyway: the bounding set is empty.
        return [*drop, f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--"]


NOBODY = Identity("nobody", "nogroup", 65534, 65534)
BARE_ROOT = Identity("root", "root", 0, 0)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def environment() -> dict[str, str]:
    """For programs of this checkout; writes nothing into it."""
    return {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


def gateway_identity() -> Identity:
    """`nobody` if that user can import from this checkout and its virtual environment."""
    probe = [*NOBODY.command, *_with_environment(), *python("-c", "import gateway.model, sqlalchemy.util")]
    return NOBODY if run(probe, check=False).returncode == 0 else BARE_ROOT


def _with_environment() -> list[str]:
    return ["env", "-i", "-C", "/", f"PATH={PATH}", *(f"{name}={value}" for name, value in environment().items())]


def write_toml(path: Path, settings: Settings, identity: Identity = BARE_ROOT) -> None:
    """Flat TOML; a JSON scalar is a TOML scalar."""
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchown(descriptor, identity.uid, identity.gid)
        file.write(text)


def start_internet(host: Host, state: Path) -> dict[str, Process]:
    """The web server and iperf3; part name to process."""
    log, lab = state / "internet.log", host.lab
    inside = enter(host, state)
    started = {}
    for part, address in {"web": INTERNET_ADDRESS, **({"web-ipv6": host.ipv6.ip} if host.ipv6 else {})}.items():
        web = [*inside, *python("-m", "tests.lab.internet", str(address), str(WEB_PORT))]
        started[part] = spawn(lab, web, log, environment())
    for port in IPERF_PORTS:
        # rcv-timeout: a server whose client fell silent is free again after 30 s.
        command = ["iperf3", "--server", "--port", str(port), "--rcv-timeout", "30000"]
        started[f"iperf3-{port}"] = spawn(lab, [*inside, *command], log)
    return started


def internet_answers(host: Host, state: Path) -> bool:
    """All ports listen; read from the kernel, so that no connection disturbs iperf3."""
    table = run([*enter(host, state), "cat", "/proc/net/tcp", "/proc/net/tcp6"], check=False).stdout
    listening = {int(found, 16) for found in re.findall(r": [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:0000 0A ", table)}
    return listening >= {WEB_PORT, *IPERF_PORTS}


# -- agents -------------------------------------------------------------------------------------------------------


def agent_folder(node: Host, state: Path) -> Path:
    return state / node.name


def agent_target(node: Host, state: Path) -> str:
    return f"unix:{agent_folder(node, state)}/agent.sock"


def fleet_address(node: Host) -> str:
    """Where gateways on other hosts call its agent."""
    return f"{node.address.ip}:{FLEET_PORT}"


def prepare_agent(node: Host, state: Path, identity: Identity, settings: Settings, *, in_fleet: bool) -> None:
    """Its folder is the one place that both the agent and the gateway of one box see: the socket lies there."""
    folder = agent_folder(node, state)
    folder.mkdir(mode=0o710)
    os.chown(folder, 0, identity.gid)
    defaults: Settings = {
        "state": str(folder / "agent.db"),
        "listen": agent_target(node, state),
        "socket_group": identity.group,
    }
    if in_fleet:
        defaults = {**defaults, "identity": str(folder / "identity"), "listen_fleet": f"0.0.0.0:{FLEET_PORT}"}
    write_toml(folder / "agent.toml", {**defaults, **settings})


def agent_command(node: Host, state: Path, *arguments: str) -> list[str]:
    config = str(agent_folder(node, state) / "agent.toml")
    return [*enter(node, state), *python("-m", "agent", "--config", config, *arguments)]


def enrol(node: Host, state: Path, token: str) -> None:
    """As its operator does it. The token goes through standard input."""
    variables = [f"{name}={value}" for name, value in environment().items()]
    run(["env", *variables, *agent_command(node, state, "enrol", "--token-file", "-")], stdin=token)


def start_agent(node: Host, state: Path) -> Process:
    variables = {**environment(), **_clock_variables(node, state)}
    return spawn(node.lab, agent_command(node, state, "run"), state / f"agent-{node.name}.log", variables)


def why_no_clocks() -> str:
    """Empty: the wall clock of an agent can be set."""
    return "" if shutil.which("cc") else "no C compiler (package gcc)"


def prepare_clock(node: Host, state: Path) -> None:
    """From now on this node's agent has a wall clock of its own."""
    library = state / "clock.so"
    if not library.exists():
        run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(Path(__file__).parent / "clock.c")])
    _clock_file(node, state).write_bytes(bytes(8))


def set_clock(node: Host, state: Path, seconds: int) -> None:
    """In place: the agent has the file mapped. Raises LabError for one that has no clock of its own."""
    if not _clock_file(node, state).exists():
        raise LabError(f"{node.name}: its clock is the machine's, because the lab was made without `clocks`")
    with _clock_file(node, state).open("r+b") as file:
        file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


def _clock_file(node: Host, state: Path) -> Path:
    return agent_folder(node, state) / "clock"


def _clock_variables(node: Host, state: Path) -> dict[str, str]:
    file = _clock_file(node, state)
    return {"LD_PRELOAD": str(state / "clock.so"), "LAB_CLOCK": str(file)} if file.exists() else {}


def wait_for_agent(node: Host, state: Path, running: Process) -> None:
    """Until the agent's gRPC health service says SERVING."""
    what = f"agent of {node.name}, see {state}/agent-{node.name}.log"
    with grpc.insecure_channel(agent_target(node, state), IMPATIENT) as channel:
        # Raw bytes on purpose: the wire form of an empty request and of SERVING need no generated code.
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
        )

        def serving() -> bool:
            with contextlib.suppress(grpc.RpcError):
                return bool(check(b"", timeout=0.5, wait_for_ready=True) == SERVING)
            return False

        wait_until(serving, what, START_SECONDS, running)
