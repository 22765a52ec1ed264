"""The gateway's command line, as an operator types it beside a gateway that runs."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

SECONDS = 60.0


async def command(config: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    program = (sys.executable, "-m", "gateway", "--config", str(config))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*program, *arguments, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
