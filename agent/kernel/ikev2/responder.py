"""The responder of a node: charon, FreeRADIUS, and the one device by which all sessions of IKEv2 come in.

A part that a server asks for; there is one for all of them. `read` names it where both programs live and answer,
FreeRADIUS reads the list of logins that is there, and so is the device; anything less is started anew, whole, for
charon does not find a lost FreeRADIUS by itself and its device goes with it. Settings of the device are put right where
it stands, and sessions go on. Nobody can get in before `gate` has opened: until then charon has no connection.

The device: with ESP in userspace the TUN that charon makes and routes to; with the kernel's, an XFRM interface of the
same name, and `routes` is what charon does not do there. Either is treated as a WireGuard link is: a root, classes.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from agent.errors import KernelError
from agent.kernel.host import ip_forward, ipv6_forward
from agent.kernel.host.interfaces import (
    Interface,
    add_xfrm,
    read_link,
    remove_interface,
    set_interface,
)
from agent.kernel.host.ports import udp_ports
from agent.kernel.ikev2 import files, programs, radius
from agent.kernel.ikev2.charon import Charon
from agent.kernel.ikev2.files import Paths
from agent.kernel.ikev2.leftovers import XFRM_ID, forget
from agent.kernel.ikev2.programs import CHARON, END_SECONDS, RADIUS, Process
from agent.kernel.ikev2.radius import Radius
from agent.kernel.ikev2.users import Users, remove
from agent.model import IKEV2_DEVICE
from agent.objects import IKEV2_PORTS, Diff, Responder, Scope

log = logging.getLogger("agent.ikev2")

Esp = Literal["kernel", "userspace"]
KINDS: dict[Esp, str] = {"kernel": "xfrm", "userspace": "tun"}
PLUGINS = Path("/usr/lib/ipsec/plugins")
NEEDED = {  # by package
    "charon-systemd": (Path(CHARON),),
    "libcharon-extra-plugins": (PLUGINS / "libstrongswan-eap-radius.so", PLUGINS / "libstrongswan-kernel-libipsec.so"),
    "libstrongswan-standard-plugins": (PLUGINS / "libstrongswan-openssl.so",),
    "freeradius": (Path(RADIUS), Path("/usr/lib/freeradius/rlm_eap_mschapv2.so")),
}
READY_SECONDS = 15.0
CHARON_SECONDS = 3.0  # for an answer; one that has nothing but logins to do takes milliseconds
BUSY_SHARE, MOST_EXCUSED = 0.1, 10  # of the time that it was waited for, in CPU; readings
# Bytes. Of the XFRM interface: with what ESP of any cipher and UDP add, a packet fits into the 1450 of some networks.
# Segments are clamped to it: who hears no ICMP would send 1500, which never arrive. charon gives its TUN 1400.
MTUS: dict[Esp, int] = {"kernel": 1360, "userspace": 1400}


def missing() -> str:
    """ "" or why there can be no IKEv2 here, with the cure."""
    packages = [name for name, paths in NEEDED.items() if not all(path.exists() for path in paths)]
    if packages:
        return f"IKEv2 needs programs that are not installed: apt-get install {' '.join(packages)}"
    return ""


def occupied() -> str:
    """ "" or what of the host stands in the way, with the cure; while none of ours runs."""
    if taken := sorted(IKEV2_PORTS & udp_ports()):
        return (
            f"UDP port {taken[0]} is taken: another IPsec runs on this host (strongSwan, Libreswan). Stop it and "
            "keep it from starting (`systemctl disable --now strongswan strongswan-starter`), or sell no IKEv2 here"
        )
    if read_link(IKEV2_DEVICE):
        return f"interface {IKEV2_DEVICE} exists and is not ours: another IPsec's; remove it"
    return ""


class Responders:
    """`Part[str, Responder]`. `folder`: of the agent's own, for what runs."""

    def __init__(self, folder: Path, esp: Esp) -> None:
        self._paths = Paths(folder)
        self._esp = esp
        self._charon = Charon(self._paths.control, CHARON_SECONDS)
        self._hung: frozenset[Process] = frozenset()  # as the last reading found: nobody waits for those a second time
        self._excused = 0  # readings one after the other in which one was too busy to answer

    def read(self, scope: Scope) -> dict[str, Responder]:
        """Also one that is ours and not as it should be: then it is named as one that nobody wants."""
        held = programs.remembered(self._paths.running)
        device = read_link(IKEV2_DEVICE)
        if not held and (device is None or not self._is_ours(device)) and not self._is_forgotten():
            return {}
        self._hung = frozenset()
        if device is None or self._fault(held, device):
            return {IKEV2_DEVICE: Responder(IKEV2_DEVICE, is_sound=False)}
        is_set = device.mtu == MTUS[self._esp] and not ip_forward.is_off(device.name)
        return {IKEV2_DEVICE: Responder(IKEV2_DEVICE, is_set=is_set, ipv6=ipv6_forward.is_enabled(device.name))}

    def _is_forgotten(self) -> bool:
        """Do ours run and nobody has written down which? Only who has the ports is looked for."""
        return bool(IKEV2_PORTS & udp_ports() and programs.running(self._paths))

    def _fault(self, held: Mapping[str, Process], device: Interface | None) -> str:
        """ "" = it is sound."""
        if device is None or device.kind != KINDS[self._esp] or not device.up:
            return f"{IKEV2_DEVICE} is not as it should be"
        if held.keys() != {"freeradius", "charon"}:
            return "nobody knows which processes are ours"
        for name, process in held.items():
            if not process.is_alive():
                return f"{name} has ended"
        users, asked = self._paths.users, radius.started(self._paths.asked)
        if not Users(users).is_right():
            return "the list of logins is damaged"
        if asked is None or not asked.reads(users):
            return "the list of logins is not the one that FreeRADIUS reads"
        return self._silent(held, asked)

    def _silent(self, held: Mapping[str, Process], asked: Radius) -> str:
        """Is one of them there and does nothing? One that works has too much to do: strangers may see to that, and to
        start it anew would put everybody out for them. But not for ever: it may go round in circles."""
        silent = [name for name, process in held.items() if process in self._hung]
        if not silent:
            worked, began = {name: process.worked() for name, process in held.items()}, time.monotonic()
            silent += [] if asked.answers() else ["freeradius"]
            silent += [] if self._has_version() else ["charon"]
            least = BUSY_SHARE * (time.monotonic() - began)
            busy = [name for name in silent if held[name].worked() - worked[name] > least]
            self._excused = self._excused + 1 if busy else 0
            if self._excused <= MOST_EXCUSED:
                silent = [name for name in silent if name not in busy]
            self._hung = frozenset(held[name] for name in silent)
        return f"no answer from {' and '.join(silent)}" if silent else ""

    def _has_version(self) -> bool:
        with suppress(KernelError):
            return bool(self._charon.version())
        return False

    @staticmethod
    def _is_ours(device: Interface) -> bool:
        return device.alias == _alias()

    def apply(self, diff: Diff[str, Responder]) -> Mapping[str, KernelError]:
        try:
            held = programs.remembered(self._paths.running)
            wanted = diff.add.get(IKEV2_DEVICE) or diff.change.get(IKEV2_DEVICE)
            fault = "" if wanted is None else self._fault(held, read_link(IKEV2_DEVICE))
            if wanted is None or fault:
                if held and wanted:
                    log.warning("IKEv2 is started anew: %s", fault)
                self._end(held)
                if wanted is not None:
                    self._start()
            if wanted is not None:
                self._set_device(wanted.ipv6)
        except (KernelError, OSError) as error:  # of files: the folder's disk is full
            said = error if isinstance(error, KernelError) else KernelError(f"IKEv2: {error}")
            return dict.fromkeys((*diff.remove, *diff.change, *diff.add), said)
        return {}

    def _end(self, held: Mapping[str, Process]) -> None:
        for process in {*held.values(), *programs.running(self._paths)}:
            process.end(0 if process in self._hung else END_SECONDS)
        forget()
        device = read_link(IKEV2_DEVICE)
        if device is not None and self._is_ours(device):
            remove_interface(IKEV2_DEVICE)
        remove(self._paths.folder)

    def _start(self) -> None:
        if reason := missing():
            raise KernelError(reason, retry=False)
        if reason := occupied():
            raise KernelError(reason)
        paths, secret, port = self._paths, secrets.token_hex(24), _free_port()
        paths.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        Users(paths.users).make()
        Radius(port, secret, radius.identity(paths.users)).save(paths.asked)
        files.write(paths.charon, files.charon(paths, port, secret, userspace=self._esp == "userspace"))
        files.write(paths.radius, files.radius(paths, port, secret))
        freeradius = programs.start(programs.radius_words(paths), {})
        programs.remember(paths.running, {"freeradius": freeradius})
        programs.wait("FreeRADIUS", freeradius, READY_SECONDS, lambda: port in udp_ports())
        charon = programs.start([CHARON], programs.charon_environment(paths))
        programs.remember(paths.running, {"freeradius": freeradius, "charon": charon})
        programs.wait("charon (strongSwan)", charon, READY_SECONDS, self._answers)
        self._make_device(charon)
        log.info("IKEv2 started strongswan=%s esp=%s", self._charon.version(), self._esp)

    def _answers(self) -> bool:
        return self._has_version() and udp_ports() >= IKEV2_PORTS

    def _make_device(self, charon: Process) -> None:
        if self._esp == "kernel":
            add_xfrm(IKEV2_DEVICE, XFRM_ID)
        else:
            programs.wait("charon's TUN", charon, READY_SECONDS, lambda: read_link(IKEV2_DEVICE) is not None)
        device = _there()
        set_interface(device, ifalias=_alias())
        set_interface(device, state="up")

    def _set_device(self, ipv6: bool) -> None:
        """What is right is not touched."""
        device = _there()
        if device.mtu != MTUS[self._esp]:
            set_interface(device, mtu=MTUS[self._esp])
        ip_forward.switch_on((IKEV2_DEVICE,), ())
        ipv6_forward.enable(IKEV2_DEVICE, ipv6)


def _there() -> Interface:
    device = read_link(IKEV2_DEVICE)
    if device is None:
        raise KernelError(f"link {IKEV2_DEVICE} vanished as soon as it was made")
    return device


def version(folder: Path) -> tuple[str, int]:
    """Of the responder that runs, and charon's process number; ("", 0) = none."""
    paths = Paths(folder)
    charon = programs.remembered(paths.running).get("charon")
    if charon is None or not charon.is_alive():
        return "", 0
    with suppress(KernelError):
        return f"strongSwan {Charon(paths.control).version()}", charon.number
    return "", 0


def lost_processes(folder: Path) -> frozenset[int]:
    """Those of ours that have ended without us. Cheap: called every second."""
    held = programs.remembered(Paths(folder).running)
    return frozenset(process.number for process in held.values() if not process.is_alive())


def _alias() -> str:
    """Not that of our links: what owns those would take it for one."""
    return "wirelane-ikev2"


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
