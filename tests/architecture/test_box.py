"""What a real box gets: closed units, valid and complete example files, a package with every file in it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import agent.config
import gateway.config
from gateway import one_time_links
from gateway.http import admission

LOCKS = ("requirements-runtime.lock", "requirements.lock")
ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"


@pytest.mark.parametrize(("unit", "worst"), [("wirelane-gateway.service", 1.2), ("wirelane-agent.service", 2.2)])
def test_a_unit_exposes_no_more_than_it_must(unit: str, worst: float) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={worst * 10:.0f}", unit]
    done = subprocess.run(command, cwd=UNITS, capture_output=True, text=True, timeout=60, check=False)
    assert "Overall exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("process", ["agent", "gateway"])
def test_the_example_configuration_passes_check(process: str, tmp_path: Path) -> None:
    # also with every commented default switched on: they are the defaults, so nothing may change
    example = (UNITS / f"{process}.toml").read_text()
    full = tmp_path / "full.toml"
    full.write_text(re.sub(r"(?m)^#([\w.]+ = )", r"\1", example))
    shown = [checked(process, path) for path in (UNITS / f"{process}.toml", full)]
    assert shown[0].replace(str(UNITS / f"{process}.toml"), "") == shown[1].replace(str(full), "")


def checked(process: str, config: Path) -> str:
    command = [sys.executable, "-m", f"{process}", "--config", str(config), "check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("process", "config"), [("agent", agent.config.Config), ("gateway", gateway.config.Config)])
def test_the_example_names_every_key(process: str, config: type) -> None:
    example = re.sub(r"(?m)^#([\w.]+ = )", r"\1", (UNITS / f"{process}.toml").read_text())
    table = tomllib.loads(example)
    named = {f"{key}.{inner}" for key, of in table.items() if isinstance(of, dict) for inner in of}
    named |= {key for key, of in table.items() if not isinstance(of, dict)}
    assert named == {field.metadata.get("key") or field.name for field in dataclasses.fields(config)}


def test_the_package_holds_every_file_of_both_processes(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("agent", "gateway", "protos", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", ROOT / name, copy], check=True, timeout=60)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(tmp_path), str(copy)], check=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for process in ("agent", "gateway", "protos")
        for path in (ROOT / process).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert wanted - packed == set()


def test_the_runtime_lock_names_the_same_versions_as_the_whole_lock() -> None:
    pins = [set(re.findall(r"(?m)^([\w.-]+==[^\s;]+)", (ROOT / name).read_text())) for name in LOCKS]
    assert len(pins[0]) > 20
    assert pins[0] <= pins[1]


@pytest.mark.parametrize("unit", ["wirelane-agent.service", "wirelane-gateway.service"])
def test_the_security_paper_tells_what_a_unit_opens(unit: str) -> None:
    paper = (ROOT / "docs" / "security.md").read_text()
    lines = [line.partition("=") for line in (UNITS / unit).read_text().splitlines()]
    opened = {"CapabilityBoundingSet", "ReadWritePaths", "StateDirectory", "RuntimeDirectory", "User"}
    told = [word for name, _, value in lines if name in opened for word in value.split()]
    assert told and all(f"{word}`" in paper for word in told), told
    assert ("LimitCORE", "=", "0") in lines


def test_the_security_paper_tells_the_bounds_of_the_door() -> None:
    paper = (ROOT / "docs" / "security.md").read_text()
    assert f"{admission.FROM_ONE_ADDRESS} of the {admission.CONNECTIONS:,} connections" in paper
    assert f"{one_time_links.KEY_BYTES * 8} random bits" in paper
