"""The classifier against a simulator of classic BPF, for every mark there is."""

from __future__ import annotations

import struct

from agent.kernel.tc import classifier
from agent.model import is_mark, minor

WORD = 0xFFFFFFFF


def run(program: tuple[classifier.Instruction, ...], mark: int) -> int:
    """A simulator of the instructions that the program uses; any other is an error (linux/filter.h)."""
    a = x = 0
    scratch: dict[int, int] = {}  # reading before writing is an error here as it is in the kernel's checker
    position = 0
    while True:
        code, jump_true, jump_false, k = program[position]
        position += 1
        match code:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                assert k == 0xFFFFF014, "only the mark may be loaded"
                a = mark
            case 0x60:  # BPF_LD | BPF_MEM
                a = scratch[k]
            case 0x02:  # BPF_ST
                scratch[k] = a
            case 0x07:  # BPF_MISC | BPF_TAX
                x = a
            case 0x0C:  # BPF_ALU | BPF_ADD | BPF_X
                a = a + x & WORD
            case 0x34:  # BPF_ALU | BPF_DIV | BPF_K
                a //= k
            case 0x24:  # BPF_ALU | BPF_MUL | BPF_K
                a = a * k & WORD
            case 0x44:  # BPF_ALU | BPF_OR | BPF_K
                a |= k
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                position += jump_true if a >= k else jump_false
            case 0x06:  # BPF_RET | BPF_K
                return k
            case 0x16:  # BPF_RET | BPF_A
                return a
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def test_every_mark_of_an_account_leads_to_the_class_with_its_minor() -> None:
    marks = [mark for mark in range(1 << 16) if is_mark(mark)]
    assert len(marks) == 34_475
    assert [run(classifier.PROGRAM, mark) for mark in marks] == [0x10000 | minor(mark) for mark in marks]


def test_any_other_mark_is_left_unclassified() -> None:
    others = [mark for mark in range(1 << 16) if not is_mark(mark)]
    large = [65_536, 65_636, 100 << 16, (100 << 16) | 109, 0x7FFFFFFF, 0x80000000, 0x80000000 | 109, WORD - 1, WORD]
    assert {run(classifier.PROGRAM, mark) for mark in others + large} == {0}


def test_no_two_marks_share_a_class() -> None:
    classes = [run(classifier.PROGRAM, mark) for mark in range(1 << 16)]
    used = [number for number in classes if number]
    assert len(set(used)) == len(used) == 34_475


def test_the_program_is_one_the_kernel_takes() -> None:
    """bpf_check_classic: jumps stay inside, the last instruction returns, at most 4096 of them."""
    program = classifier.PROGRAM
    for position, (_, jump_true, jump_false, _) in enumerate(program[:-1]):
        assert position + 1 + max(jump_true, jump_false) < len(program)
    assert program[-1][0] in (classifier.RETURN, classifier.RETURN_A)
    assert len(program) <= 4096


def test_packed_is_an_array_of_struct_sock_filter() -> None:
    raw = classifier.packed(classifier.PROGRAM)
    assert len(raw) == 8 * len(classifier.PROGRAM)
    assert tuple(struct.iter_unpack("=HBBI", raw)) == classifier.PROGRAM
    assert raw[:8] == bytes.fromhex("2000 00 00 14f0ffff".replace(" ", ""))
