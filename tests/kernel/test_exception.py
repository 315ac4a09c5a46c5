"""struct pt_regs, as an exception leaves it on the stack."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rig.kernel import exception
from rig.model import Arch
from tests.forge import cpu


def test_registers_are_where_the_kernel_puts_them() -> None:
    # words 0, 1, 2...: offsetof(struct pt_regs, ip) is 48 on i386 and 128 on x86_64, and sp 60 and 152
    for arch, ip, sp in ((Arch.I386, 48, 60), (Arch.AMD64, 128, 152)):
        size = exception.size(arch)
        blob = b"".join(i.to_bytes(arch.word, "little") for i in range(size // arch.word))
        found = exception.parse(arch, blob)
        assert (found["rip"], found["rsp"]) == (ip // arch.word, sp // arch.word)
        assert found["ss"] == size // arch.word - 1


def test_another_size_is_no_pt_regs() -> None:
    with pytest.raises(ValueError, match="has 168 bytes, not 167"):
        exception.parse(Arch.AMD64, bytes(167))


def test_only_the_first_argument_of_a_function_that_takes_registers_is_one() -> None:
    state = replace(cpu(0), general={**cpu(0).general, "rax": 0xC1000000, "rdi": 0xC2000000})
    assert exception.pointer(Arch.I386, "__crash_kexec", state) == 0xC1000000
    assert exception.pointer(Arch.AMD64, "crash_kexec", state) == 0xC2000000
    assert exception.pointer(Arch.AMD64, "machine_kexec", state) == 0  # it takes a struct kimage


@pytest.mark.parametrize(
    ("cs", "ss", "is_one"), [(0x60, 0x68, True), (0x73, 0x7B, True), (0x73, 0x68, False), (0xC10, 0x68, False)]
)
def test_registers_of_an_exception_have_a_code_segment_of_the_kernel_or_of_user_mode(
    cs: int, ss: int, is_one: bool
) -> None:
    assert exception.plausible({"cs": 0xDEAD0000 | cs, "ss": ss}, cpu(0)) == is_one  # cpu(0) is in the kernel, at 0x60
