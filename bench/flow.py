"""A program: numbered packets at a steady pace through a tunnel and back, so that each one that is lost is known.

python -m bench.flow echo ADDRESS PORT                 sends back what comes, until it is ended
python -m bench.flow send ADDRESS PORT PACE SECONDS    prints one JSON object: sent, returned, longest gap (ms)
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time

NUMBER = struct.Struct("=Q")
LAST_SECONDS = 1.0  # for what is still on its way
PADDING = bytes(92)


def echo(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        while True:
            data, sender = sock.recvfrom(2048)
            sock.sendto(data, sender)


def send(address: str, port: int, pace: float, seconds: float) -> dict[str, float]:
    """`pace`: packets a second. A late packet does not delay those behind it."""
    returned: set[int] = set()
    longest, heard = 0.0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        began, count = time.monotonic(), round(pace * seconds)
        for number in range(count + 1):
            due = began + number / pace + (LAST_SECONDS if number == count else 0.0)
            while (left := due - time.monotonic()) > 0:
                sock.settimeout(left)
                try:
                    returned.add(NUMBER.unpack_from(sock.recv(2048))[0])
                except (TimeoutError, BlockingIOError):
                    break
                now = time.monotonic()
                longest, heard = max(longest, now - heard), now
            if number < count:
                sock.settimeout(1.0)
                sock.send(NUMBER.pack(number) + PADDING)
    return {"sent": count, "returned": len(returned), "longest_gap_ms": longest * 1e3}


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(sys.argv[2], int(sys.argv[3]))
    else:
        print(json.dumps(send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))))
