"""Tables in the form in which the kernel gives them, made from rules in the form in which they are written."""

from __future__ import annotations

import struct

from agent.kernel.iptables import entries
from agent.kernel.iptables.entries import Image

VERDICTS = {"ACCEPT": -2, "DROP": -1, "RETURN": -5}
ERROR_SIZE = 176
POLICY = entries.entry(entries.jump("ACCEPT"))


def error(name: str) -> bytes:
    """The entry before a user-defined chain, and the last of a table."""
    target = struct.pack("=H29sB", 64, b"ERROR", 0) + name.encode().ljust(32, b"\0")
    return entries.entry(target)


def image(builtins: dict[str, list[bytes]], own: dict[str, list[bytes]] | None = None) -> Image:
    """A table with these chains; chains of our own come after the built-in ones, as the kernel has it."""
    own = own or {}
    layout: list[tuple[str, list[bytes]]] = [*builtins.items(), *own.items()]
    starts, hooks, offset = {}, {}, 0
    for name, rules in layout:
        offset += ERROR_SIZE if name in own else 0
        starts[name] = offset
        policy = offset + sum(map(len, rules))
        if name in builtins:
            hooks[name] = (offset, policy)
        offset = policy + len(POLICY)
    blob = b""
    for name, rules in layout:
        blob += error(name) if name in own else b""
        for rule in (*rules, entries.entry(entries.jump("RETURN")) if name in own else POLICY):
            blob += _read_form(rule, starts, len(blob))
    return Image.parse(blob + error("ERROR"), hooks)


def _read_form(rule: bytes, starts: dict[str, int], offset: int) -> bytes:
    """With the verdict as a number, and `comefrom` filled in as the kernel does."""
    at, name = entries.target_at(rule), entries.target_name(rule)
    rule = rule[:92] + struct.pack("=I", 0xF00) + rule[96:]
    if len(rule) - at != entries.JUMP_SIZE or name in ("MARK", "TCPMSS"):
        return rule
    verdict = VERDICTS.get(name) or starts[name] if name else offset + len(rule)
    return rule[:at] + struct.pack("=H29sBi4x", entries.JUMP_SIZE, b"", 0, verdict)
