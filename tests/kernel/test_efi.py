"""Where EFI's tables are, by the kernel's word and by their own."""

from __future__ import annotations

import pytest

from rig.errors import EvidenceError, GuestError
from rig.kernel import efi
from rig.memory.image import PagesMemory

# config_table, then struct efi_info: signature "EL64", system table, three words of the memory map, and the high halves
TOLD = "0x1f76a018\n 34364c45 1f76b018 00000030 00000001\n 1cba0018 00000c90 00000002 00000000\n"


def system_table(count: int) -> bytes:
    return b"IBI SYST".ljust(104, b"\0") + count.to_bytes(8, "little")


def test_what_the_kernel_says() -> None:
    assert efi.parse(TOLD) == (0x2_1F76B018, 0x1F76A018)


def test_what_is_no_number() -> None:
    with pytest.raises(GuestError, match="what is none: 'Segmentation fault'"):
        efi.parse("Segmentation fault")


# no EFI; 32-bit firmware; a kernel without the second file
@pytest.mark.parametrize("told", ["", TOLD.replace("3436", "3233"), "0x1f76a018\n"])
def test_nothing_is_said(told: str) -> None:
    assert efi.parse(told) is None


def test_spans() -> None:
    memory = PagesMemory({1: (b"\0" * 24 + system_table(10)).ljust(4096, b"\0")})
    assert efi.spans(memory, 0x1018, 0x5000) == ((0x1018, 120), (0x5000, 240))


@pytest.mark.parametrize(
    ("page", "message"),
    [(system_table(5000), "no EFI system table at 0x1000"), (b"", "no EFI system table at 0x1000")],
)
def test_what_is_no_system_table(page: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        efi.spans(PagesMemory({1: page.ljust(4096, b"\0")}), 0x1000, 0x5000)
    with pytest.raises(EvidenceError, match="can't be read"):
        efi.spans(PagesMemory({}), 0x1000, 0x5000)
