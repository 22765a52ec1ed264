"""The floor plan of pyproject.toml holds, and covers the whole house."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# Contract: (process, the rooms that may do what the contract forbids to all others).
ONLY = {
    "agent: only kernel touches Linux": ("agent", {"kernel"}),
    "agent: only rpc speaks protobuf": ("agent", {"rpc"}),
    "gateway: only agents speaks protobuf": ("gateway", {"agents"}),
    "gateway: only http knows the web framework": ("gateway", {"http"}),
    "gateway: only http and wiring know the web server": ("gateway", {"http", "wiring"}),
    "gateway: only store speaks SQL": ("gateway", {"store"}),
}


def contracts() -> dict[str, dict[str, Any]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return {contract["name"]: contract for contract in settings["contracts"]}


def rooms(process: str) -> set[str]:
    """What lies directly in a process' folder: modules and packages."""
    folder = ROOT / process
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return modules | {path.parent.name for path in folder.glob("*/__init__.py")}


def test_every_import_contract_holds() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-logo"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_only_contract_is_known_here() -> None:
    assert {name for name in contracts() if ": only " in name} == set(ONLY)


@pytest.mark.parametrize("name", ONLY)
def test_an_only_contract_binds_every_room_but_those_it_names(name: str) -> None:
    process, allowed = ONLY[name]
    bound = {source.removeprefix(f"{process}.") for source in contracts()[name]["source_modules"]}
    assert bound == rooms(process) - allowed


@pytest.mark.parametrize("process", ["agent", "gateway"])
def test_every_room_stands_on_a_floor(process: str) -> None:
    layers = contracts()[f"{process} floors"]["layers"]
    assert {room.strip() for layer in layers for room in layer.split("|")} == rooms(process)
