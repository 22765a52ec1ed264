"""The floor plan of pyproject.toml holds, and covers the whole house."""

from __future__ import annotations

import ast
import os
import re
import shutil
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
    "gateway: only http knows the web framework and what is scraped": ("gateway", {"http"}),
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


def linted(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    wide = {**os.environ, "COLUMNS": "500"}  # a line for each name
    return subprocess.run(command, cwd=root, env=wide, capture_output=True, text=True, timeout=100, check=False)


def test_every_import_contract_holds() -> None:
    done = linted(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def against(contract: dict[str, Any]) -> tuple[str, str]:
    """Who would import whom: the one that stands lowest the one that stands highest, a stranger the other."""
    match contract["type"]:
        case "forbidden":
            return contract["source_modules"][0], contract["forbidden_modules"][0]
        case "independence":
            return contract["modules"][0], contract["modules"][1]
    (container,), layers = contract["containers"], [layer.split(" | ") for layer in contract["layers"]]
    return f"{container}.{layers[-1][0]}", f"{container}.{layers[0][0]}"


HTTP = next(name for name in contracts() if name.startswith("gateway/http floors"))
SABOTAGES = [
    *((name, *against(contract)) for name, contract in contracts().items()),
    (HTTP, "gateway.http.pages.link", "gateway.http.v1.account"),
    (HTTP, "gateway.http.v1.account", "gateway.http.pages.link"),
    (HTTP, "gateway.http.envelope", "gateway.http.v1"),
    (HTTP, "gateway.http.access", "gateway.http.pages"),
]


@pytest.mark.parametrize(("name", "who", "whom"), SABOTAGES, ids=lambda each: each.replace(" ", "_"))
def test_a_contract_catches_what_it_is_about(name: str, who: str, whom: str, tmp_path: Path) -> None:
    for package in ("agent", "gateway", "protos"):
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / who.replace(".", "/")
    with (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).open("a") as file:
        file.write(f"\nimport {whom}\n")
    assert f"{name} BROKEN" in linted(tmp_path).stdout.splitlines()


def sabotages(contract: dict[str, Any]) -> tuple[str, str]:
    """A module, and what it must not import."""
    if contract["type"] == "layers":
        (container,) = contract["containers"]
        first, last = (contract["layers"][end].split("|")[0].strip() for end in (0, -1))
        return f"{container}.{last}", f"{container}.{first}"
    if contract["type"] == "independence":
        return contract["modules"][0], contract["modules"][1]
    return contract["source_modules"][0], contract["forbidden_modules"][0]


def test_a_sabotage_of_each_contract_is_caught(tmp_path: Path) -> None:
    for name in ("agent", "gateway", "protos"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for contract in contracts().values():
        module, forbidden = sabotages(contract)
        path = tmp_path / module.replace(".", "/")
        with (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).open("a") as file:
            file.write(f"\nimport {forbidden}\n")
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert f"Contracts: 0 kept, {len(contracts())} broken." in done.stdout, done.stdout + done.stderr


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


# -- the kernel's house: each room has a face, which is all that others see of it ------------------------------------

KERNEL = ROOT / "agent" / "kernel"
FACES = ("iptables", "netlink", "nftables", "tc", "wireguard")
DOORS = {"agent.kernel.linux", "agent.kernel.trials"}  # of the house


def imports(path: Path) -> set[str]:
    """The modules that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def modules_of(room: str) -> set[str]:
    face = KERNEL / room / "__init__.py"
    shown = set(re.findall(r'"(\w+)"', face.read_text().partition("__all__")[2]))
    return {f"agent.kernel.{room}.{path.stem}" for path in (KERNEL / room).glob("*.py") if path.stem not in shown}


@pytest.mark.parametrize("room", FACES)
def test_a_room_is_used_by_its_face_alone(room: str) -> None:
    inside = modules_of(room)
    assert inside
    users = [path for path in (ROOT / "agent").rglob("*.py") if path.parent != KERNEL / room]
    # The trials try the tools of each room one by one.
    peeking = {str(path): imports(path) & inside for path in users if path.parent != KERNEL / "trials"}
    assert not {path: names for path, names in peeking.items() if names}


def test_the_house_is_entered_by_its_doors_alone() -> None:
    users = [path for path in (ROOT / "agent").rglob("*.py") if KERNEL not in path.parents]
    entered = {name for path in users for name in imports(path) if name.startswith("agent.kernel.")}
    assert {".".join(name.split(".")[:3]) for name in entered} == DOORS
