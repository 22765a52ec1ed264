"""The body of a request, bounded in size and time. Called by whatever reads one."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from gateway.http.envelope import HttpError

BODY_SECONDS = 20.0  # below the listener's own bound, so that there is an answer
# Of a body that is too long, so much is read and forgotten before the answer: a client that is still sending when the
# connection closes loses the answer.
DISCARDED_BYTES = 32 * 1024 * 1024


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises HttpError: 413 above `max_bytes` (which is never kept), 408 when too slow."""
    too_large = HttpError(413, f"Body too large (only {max_bytes} bytes)", {"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if request.headers.get("expect") and declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large  # the client asked first and has sent nothing yet
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= max_bytes:
                    body += chunk
                elif size > max_bytes + DISCARDED_BYTES:
                    break
    except TimeoutError:
        if size <= max_bytes:
            raise HttpError(408, "Body too slow", {"Connection": "close"}) from None
    if size > max_bytes:
        raise too_large
    return bytes(body)


async def skip_body(request: Request) -> None:
    """To its end, of a call for which it means nothing: half a request changes nothing. Raises HttpError: 413, 408."""
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > DISCARDED_BYTES:
                    raise HttpError(413, f"Body too large (only {DISCARDED_BYTES} bytes)", {"Connection": "close"})
    except TimeoutError:
        raise HttpError(408, "Body too slow", {"Connection": "close"}) from None
