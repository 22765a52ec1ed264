"""From mark to class: one classic BPF program for every account there is or will be.

Pure. Owns the program that `cls_bpf` runs for each packet (tc-bpf(8)); its return value is the class id, so there is
no filter per account and nothing to change when accounts come and go. Called by the shaper. The numbers are those of
`agent.model.minor`, which the tests hold it to.
"""

from __future__ import annotations

import struct

from agent.model import DECIMAL_MARKS, PLAIN_MARKS

Instruction = tuple[int, int, int, int]  # struct sock_filter: code, jump if true, jump if false, k

# linux/bpf_common.h, linux/filter.h: class | size or operation | mode or source
LOAD_ABSOLUTE = 0x20  # A = word at k of the packet, or of its metadata
LOAD_SCRATCH = 0x60  # A = M[k]
STORE_SCRATCH = 0x02  # M[k] = A
COPY_TO_X = 0x07  # X = A
ADD_X = 0x0C
DIVIDE = 0x34  # A = A / k, rounded down
MULTIPLY = 0x24
OR = 0x44
JUMP_IF_AT_LEAST = 0x35
RETURN = 0x06
RETURN_A = 0x16
METADATA_MARK = 0xFFFFF000 + 20  # SKF_AD_OFF + SKF_AD_MARK: skb->mark, not a byte of the packet

MAJOR = 0x10000  # class ids `1:...`: the root qdisc's handle

_MARK, _MINOR = 0, 1  # scratch words


def program() -> tuple[Instruction, ...]:
    """mark 100-9999: decimal digits read as hex; 40960-65534: the number itself; anything else: 0 = unclassified.

    mark + 6*(mark/10) + 96*(mark/100) + 1536*(mark/1000), with integer division, reads digits as hex: each division
    counts the carries into one decimal place, and a carry is worth 6 (then 6*16, 6*256) more in hex.
    Jumps are relative to the next instruction and forward only.
    """
    digits: list[Instruction] = []
    for divisor, factor in ((10, 6), (100, 96), (1_000, 1_536)):
        digits += [
            (LOAD_SCRATCH, 0, 0, _MARK),
            (DIVIDE, 0, 0, divisor),
            (MULTIPLY, 0, 0, factor),
            (COPY_TO_X, 0, 0, 0),
            (LOAD_SCRATCH, 0, 0, _MINOR),
            (ADD_X, 0, 0, 0),
            (STORE_SCRATCH, 0, 0, _MINOR),
        ]
    ranges: list[Instruction] = [
        (LOAD_ABSOLUTE, 0, 0, METADATA_MARK),
        (JUMP_IF_AT_LEAST, 0, 5, DECIMAL_MARKS[0]),  # below: to "unclassified"
        (JUMP_IF_AT_LEAST, 0, 5, DECIMAL_MARKS[1] + 1),  # below: to "digits"
        (JUMP_IF_AT_LEAST, 0, 3, PLAIN_MARKS[0]),  # below: to "unclassified"
        (JUMP_IF_AT_LEAST, 2, 0, PLAIN_MARKS[1] + 1),  # from there on: to "unclassified"
        (OR, 0, 0, MAJOR),
        (RETURN_A, 0, 0, 0),
        (RETURN, 0, 0, 0),  # "unclassified"
        (STORE_SCRATCH, 0, 0, _MARK),  # "digits"
        (STORE_SCRATCH, 0, 0, _MINOR),
    ]
    return (*ranges, *digits, (OR, 0, 0, MAJOR), (RETURN_A, 0, 0, 0))


def packed(instructions: tuple[Instruction, ...]) -> bytes:
    """As the kernel takes it and gives it back: an array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


PROGRAM = program()
