"""Lab hosts: make and remove their namespaces, run programs inside.

A host is a named network namespace, so that `ip netns exec` works for everybody, and a mount namespace with a private
/run, because the sockets of userspace WireGuard lie in one folder there. A sleeping "holder" process keeps the mount
namespace; if it is killed, `hold` makes a fresh one, like a reboot that leaves the links. Called by lab.py, connect.py.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.processes import Process, Records, spawn, wait_until
from tests.lab.topology import HOST_PATTERN, Host, Topology, internet_commands, stub_commands

NAMESPACES = Path("/run/netns")
READY = "lab-host"  # a file in the private /run
COMMAND_SECONDS = 60.0

# Arguments: a folder to build the new /run in, a file for resolv.conf, the host's name, then PATH=VALUE sysctls.
#
# Propagation is `slave`, not `private`: a private copy of the mounts below /run/netns would keep namespaces alive that
# others delete. The xtables lock stays the machine's: people look into the host with `ip netns exec NS
# iptables-legacy`, and only a lock that both sides see protects the agent's table transactions from theirs.
HOLDER = r"""
set -euo pipefail
stage=$1 resolv=$2 name=$3; shift 3
while umount --no-mtab --lazy /run/netns 2>/dev/null; do :; done
mount --no-mtab -t tmpfs -o mode=755,size=64m tmpfs "$stage"
mkdir -m 1777 "$stage/lock"
touch "$stage/xtables.lock"
(umask 077; touch -a /run/xtables.lock)
mount --no-mtab --bind /run/xtables.lock "$stage/xtables.lock"
mount --no-mtab --move "$stage" /run
mount --no-mtab -t sysfs sysfs /sys
if [ -f /etc/resolv.conf ] && [ ! -L /etc/resolv.conf ]; then mount --no-mtab --bind "$resolv" /etc/resolv.conf; fi
for setting in "$@"; do
  path=/proc/sys/${setting%%=*}
  if [ -e "$path" ]; then echo "${setting#*=}" > "$path"; fi
done
echo "$name" > /run/lab-host
exec -a "lab-host $name" sleep infinity
"""


def run(
    argv: Sequence[str], *, stdin: str | None = None, check: bool = True, seconds: float = COMMAND_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. Raises LabError with its own words if it fails (and `check`) or takes too long."""
    try:
        done = subprocess.run(
            list(argv),
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise LabError(f"{argv[0]}: not done within {seconds:g} s") from late
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


def existing(lab: str) -> list[str]:
    """Names of this lab's network namespaces, and of no other's."""
    ours = re.compile(rf"{re.escape(lab)}-{HOST_PATTERN}")
    return sorted(path.name for path in NAMESPACES.glob("*") if ours.fullmatch(path.name))


def create(plan: Topology) -> None:
    """Make the network namespaces and wire them up."""
    for host in plan.hosts:
        run(["ip", "netns", "add", host.namespace])
    _batch(plan.internet, internet_commands(plan))
    for host in plan.stubs:
        _batch(host, stub_commands(host))


def _batch(host: Host, commands: Iterable[str]) -> None:
    run(["ip", "-netns", host.namespace, "-batch", "-"], stdin="".join(f"{line}\n" for line in commands))


def remove(namespaces: Iterable[str]) -> None:
    """Delete network namespaces; their links go with them. Absent is removed already."""
    for name in namespaces:
        with contextlib.suppress(LabError):
            run(["ip", "netns", "delete", name])


def hold(host: Host, state: Path) -> Process:
    """The host's holder; starts one where there is none. `state`: the lab's folder."""
    records = Records(state / "processes")
    part = f"holder-{host.name}"
    if (running := records.load(part)) and _is_ready(running, host):
        return running
    folder = state / "hosts" / host.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run").mkdir(exist_ok=True)
    resolv_conf(host, state).touch()
    started = spawn(
        host.lab,
        ["nsenter", f"--net={NAMESPACES / host.namespace}", "unshare", "--mount", "--propagation", "slave"]
        + ["/bin/bash", "-c", HOLDER, "hold", str(folder / "run"), str(resolv_conf(host, state)), host.namespace]
        + [f"{path}={value}" for path, value in host.sysctls],
        state / "hosts.log",
    )
    records.save(part, started)
    wait_until(lambda: _is_ready(started, host), f"host {host.name}, see {state}/hosts.log", 10.0, started)
    return started


def _is_ready(holder: Process, host: Host) -> bool:
    try:
        return Path(f"/proc/{holder.pid}/root/run/{READY}").read_text().strip() == host.namespace
    except OSError:
        return False


def resolv_conf(host: Host, state: Path) -> Path:
    """The file that the host sees as /etc/resolv.conf."""
    return state / "hosts" / host.name / "resolv.conf"


def in_network(host: Host) -> list[str]:
    """The start of a command line that runs the rest in the host's network alone: files, /run and users are ours."""
    return ["nsenter", f"--net={NAMESPACES / host.namespace}", "--"]


def enter(host: Host, state: Path) -> list[str]:
    """The start of a command line that runs the rest in both namespaces of the host."""
    holder = hold(host, state)
    return ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"--net={NAMESPACES / host.namespace}", "--"]
