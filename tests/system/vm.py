"""Boots Debian's own kernel in QEMU over this machine's files and runs one command there: the engine of scripts/vm.

What the guest sees: the host's / read-only (9p) under a tmpfs overlay, so the same programs, the same virtual
environment, the same checkout, while every write is lost; its own /proc /sys /dev /run /mnt; no network card;
modprobe works. Plain emulation, 10-25 times slower than the host. The kernel package is downloaded and unpacked under
CACHE, never installed. Status: that of the command; 124 = over its time limit, 125 = the VM failed (with its console).

Only the standard library: it runs on the host's Python, before anything is set up.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHE = Path("/var/cache/wirelane-vm")
INIT = Path(__file__).with_name("initramfs.sh")
FLAVOUR = "amd64"  # "cloud-amd64" has no 9p
MODULES = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay", "virtio_rng")
TOOLS = ("qemu-system-x86_64", "busybox", "modprobe", "depmod", "cpio", "xz", "apt-get", "dpkg-deb")
BOOT_SECONDS = 60  # on top of the command's own time
FETCH_SECONDS = 600
FAILED, OVER_TIME = 125, 124
# quiet and without what costs time under emulation
APPEND = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check audit=0"
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "CI", "TZ")
XZ, ZSTD, ELF = b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x7fELF"


class VmError(Exception):
    """The VM cannot be made or did not come up; the text says why."""


@dataclass(frozen=True, slots=True)
class Kernel:
    image: Path  # uncompressed ELF
    initramfs: Path
    modules: Path  # .../lib/modules/VERSION


@dataclass(frozen=True, slots=True)
class Job:
    command: tuple[str, ...]
    folder: Path
    seconds: int
    cpus: int
    memory: int  # MB
    environment: tuple[str, ...]  # NAME=VALUE
    shares: tuple[Path, ...]  # written through to the host
    console: bool  # show the kernel's console in any case


# -- the kernel, once per machine ---------------------------------------------------------------------------------


def output_of(*command: str | Path, data: bytes | None = None, folder: Path | None = None) -> bytes:
    done = subprocess.run(command, input=data, cwd=folder, capture_output=True, timeout=FETCH_SECONDS, check=False)
    if done.returncode:
        raise VmError(f"{command[0]} failed with {done.returncode}:\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def kernel_package() -> str:
    """Name of the newest kernel package of the distribution; "" = the package lists are missing."""
    for line in output_of("apt-cache", "depends", f"linux-image-{FLAVOUR}").decode().splitlines():
        if line.strip().startswith("Depends: linux-image-"):
            return line.split()[-1]
    return ""


def fetch_kernel(target: Path) -> str:
    """Downloads the kernel package and unpacks it under `target`; returns its version."""
    package = kernel_package()
    if not package:
        output_of("apt-get", "-qq", "update")
        package = kernel_package()
    if not package:
        raise VmError(f"apt knows no package linux-image-{FLAVOUR}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        output_of("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package, folder=folder)
        for archive in folder.glob("*.deb"):
            output_of("dpkg-deb", "-x", archive, target)
    version = package.removeprefix("linux-image-")
    output_of("depmod", "-b", target, version)
    return version


def unpacked(bzimage: bytes) -> bytes:
    """The ELF kernel inside a bzImage. It would take seconds to unpack itself under emulation, at every boot.

    Offsets: Documentation/arch/x86/boot.rst, setup_sects (0x1f1), payload_offset and payload_length (0x248).
    """
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = ((bzimage[0x1F1] or 4) + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if payload.startswith(XZ):
        image = output_of("xz", "-dc", "--single-stream", data=payload)
    elif payload.startswith(ZSTD):
        image = output_of("zstd", "-dc", data=payload)
    else:
        raise VmError(f"the kernel is packed in an unknown way: {payload[:6].hex()}")
    if not image.startswith(ELF):
        raise VmError("the unpacked kernel is no ELF file")
    return image


def pack_initramfs(target: Path, tree: Path, version: str) -> None:
    """busybox, the few modules that are needed to mount the host's files, and INIT."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("bin", "modules", "proc", "sys", "dev", "lower", "upper", "new"):
            (folder / part).mkdir()
        shutil.copy(shutil.which("busybox") or "/bin/busybox", folder / "bin/busybox")
        shutil.copy(INIT, folder / "init")
        (folder / "init").chmod(0o755)
        order: list[str] = []
        for module in MODULES:
            for line in (
                output_of("modprobe", "-d", tree, "-S", version, "--show-depends", module).decode().splitlines()
            ):
                path = Path(line.split()[1])
                if line.startswith("insmod ") and path.name not in order:
                    order.append(path.name)
                    shutil.copy(path, folder / "modules")
        (folder / "modules/order").write_text("".join(f"{module}\n" for module in order))
        names = "\n".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))
        packed = output_of("cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0", data=names.encode(), folder=folder)
    write_whole(target, packed)


def write_whole(target: Path, content: bytes) -> None:
    half = target.with_suffix(".half")
    half.write_bytes(content)
    half.rename(target)


def prepared_kernel() -> Kernel:
    """Kernel and initramfs under CACHE; made when they are missing, the initramfs also when INIT is newer."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise VmError(f"missing programs: {' '.join(missing)}; run scripts/setup")
    CACHE.mkdir(parents=True, exist_ok=True)
    tree, mark = CACHE / "package", CACHE / "version"
    image, initramfs = CACHE / "vmlinux", CACHE / "initramfs"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.exists():
            shutil.rmtree(tree, ignore_errors=True)
            version = fetch_kernel(tree)
            write_whole(image, unpacked((tree / f"boot/vmlinuz-{version}").read_bytes()))
            initramfs.unlink(missing_ok=True)
            write_whole(mark, version.encode())
        version = mark.read_text()
        if not initramfs.exists() or initramfs.stat().st_mtime < max(
            INIT.stat().st_mtime, Path(__file__).stat().st_mtime
        ):
            pack_initramfs(initramfs, tree, version)
    return Kernel(image, initramfs, tree / "lib/modules" / version)


# -- one run ------------------------------------------------------------------------------------------------------


def write_control(control: Path, kernel: Kernel, job: Job) -> None:
    """The folder through which host and guest talk: what to run, and later its status."""
    environment = [f"{name}={os.environ[name]}" for name in KEPT_ENVIRONMENT if name in os.environ]
    environment += ["PYTHONDONTWRITEBYTECODE=1", *job.environment]
    lines = [f"export {name}={shlex.quote(value)}" for name, _, value in (item.partition("=") for item in environment)]
    lines += [f"cd {shlex.quote(str(job.folder))} || exit {FAILED}"]
    lines += [f"exec timeout -k 5 {job.seconds} {shlex.join(job.command)}"]
    (control / "command").write_text("\n".join(lines) + "\n")
    (control / "start").write_text(
        "bash /run/vm/command > /run/port.out 2> /run/port.err < /dev/null\n"
        "echo $? > /run/vm/status.half; mv /run/vm/status.half /run/vm/status\n"
        "sync\n"
        "exec busybox poweroff -f\n"
    )
    (control / "modules").write_text(str(kernel.modules))
    (control / "shares").write_text("".join(f"{share}\n" for share in job.shares))


def qemu_command(kernel: Kernel, job: Job, folder: Path) -> list[str]:
    def shared(tag: str, path: Path, options: str = "") -> list[str]:
        # a comma in a QEMU option is written twice
        where = str(path).replace(",", ",,")
        return [
            "-fsdev", f"local,id={tag},path={where},security_model=passthrough,multidevs=remap{options}",
            "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
        ]  # fmt: skip

    def port(name: str) -> list[str]:
        return [
            "-chardev", f"file,id={name},path={folder / name}",
            "-device", f"virtserialport,chardev={name},name={name}",
        ]  # fmt: skip

    return [
        "setpriv", "--pdeathsig", "TERM",  # QEMU ends with us, whatever happens to us
        "timeout", "-k", "5", str(job.seconds + BOOT_SECONDS),
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max",
        "-smp", str(job.cpus), "-m", str(job.memory),
        "-kernel", str(kernel.image), "-initrd", str(kernel.initramfs), "-append", APPEND,
        "-chardev", f"file,id=console,path={folder / 'console'}", "-serial", "chardev:console",
        "-device", "virtio-serial-pci", *port("out"), *port("err"), "-device", "virtio-rng-pci",
        *shared("root", Path("/"), ",readonly=on"), *shared("control", folder / "control"),
        *[word for i, share in enumerate(job.shares) for word in shared(f"share{i}", share)],
    ]  # fmt: skip


@contextmanager
def streamed(folder: Path) -> Iterator[None]:
    """Copies what the guest writes to our own output. FIFOs, because QEMU makes an inherited output non-blocking."""

    def copy(fifo: Path, target: int) -> None:
        with fifo.open("rb", buffering=0) as source:
            while chunk := source.read(65536):
                while chunk:
                    chunk = chunk[os.write(target, chunk) :]

    sinks = ((folder / "out", sys.stdout.fileno()), (folder / "err", sys.stderr.fileno()))
    for fifo, _ in sinks:
        os.mkfifo(fifo)
    threads = [threading.Thread(target=copy, args=sink, daemon=True) for sink in sinks]
    for thread in threads:
        thread.start()
    writers = [fifo.open("wb") for fifo, _ in sinks]  # so that the readers end when QEMU and we are gone, not before
    try:
        yield
    finally:
        for writer in writers:
            writer.close()
        for thread in threads:
            thread.join(BOOT_SECONDS)


def run(job: Job, kernel: Kernel) -> int:
    with tempfile.TemporaryDirectory(prefix="wirelane-vm.") as name:
        folder = Path(name)
        control = folder / "control"
        control.mkdir()
        write_control(control, kernel, job)
        words = qemu_command(kernel, job, folder)
        with (
            streamed(folder),
            (folder / "qemu").open("wb") as messages,
            subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages) as process,
        ):
            try:
                status = process.wait()
            finally:
                process.terminate()  # does nothing when it is over; `timeout` hands it on to QEMU
        answer = control / "status"
        console = (folder / "console").read_text(errors="replace") if (folder / "console").exists() else ""
        if answer.exists():
            if job.console:
                print(console, file=sys.stderr)
            return int(answer.read_text())
        print((folder / "qemu").read_text(errors="replace"), console[-4000:], sep="\n", file=sys.stderr)
        return OVER_TIME if status == OVER_TIME else FAILED


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/vm", description="Runs one command on Debian's own kernel.")
    parser.add_argument("--seconds", type=int, default=600, help="time limit of the command (default 600)")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=2048, metavar="MB")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set in the guest")
    parser.add_argument(
        "--share", action="append", default=[], type=Path, metavar="FOLDER", help="writes reach the host"
    )
    parser.add_argument("--console", action="store_true", help="show the kernel's console at the end")
    parser.add_argument("--prepare", action="store_true", help="only download and unpack the kernel")
    parser.add_argument("command", nargs="*")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if os.geteuid() != 0:
            raise VmError("root is needed: the guest reads this machine's files as root")
        kernel = prepared_kernel()
        if options.prepare:
            print(f"kernel {kernel.modules.name}")
            return 0
        if not options.command:
            raise VmError("no command given")
        shares = tuple(share.resolve(strict=True) for share in options.share)
        command = tuple(options.command)
        return run(
            Job(
                command, Path.cwd(), options.seconds, options.cpus, options.memory, tuple(options.env), shares,
                options.console,
            ),
            kernel,
        )  # fmt: skip
    except (VmError, OSError, subprocess.SubprocessError) as error:
        print(f"scripts/vm: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
