"""The committed gRPC stubs are those of the .proto file."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUBS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "protos").rglob("*_pb2*.py*") if path.suffix != ".pyc")


def test_stubs_are_fresh(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts/stubs", tmp_path], check=True, timeout=60)
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert made == STUBS
    assert [name for name in STUBS if (tmp_path / name).read_bytes() != (ROOT / name).read_bytes()] == []
