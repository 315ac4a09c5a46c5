from __future__ import annotations

import io

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from rig.kernel.symfile import elf
from rig.model import Arch


@pytest.mark.parametrize("arch", list(Arch))
def test_symbols_can_be_read_back(arch: Arch) -> None:
    image = ELFFile(io.BytesIO(elf({0xC1002000: "panic", 0xC1001000: "_text", 0xF8000010: "damage [damage]"}, arch)))
    table, text = image.get_section_by_name(".symtab"), image.get_section_by_name(".text")
    assert isinstance(table, SymbolTableSection)
    assert text is not None
    found = [(s.name, s["st_value"], s["st_size"]) for s in table.iter_symbols()]
    assert found == [
        ("", 0, 0),
        ("_text", 0xC1001000, 0x1000),
        ("panic", 0xC1002000, 0x36FFE010),
        ("damage", 0xF8000010, 1),
    ]
    assert (text["sh_addr"], text["sh_size"], text["sh_type"]) == (0xC1001000, 0x36FFF011, "SHT_NOBITS")
    assert image["e_machine"] == {Arch.I386: "EM_386", Arch.AMD64: "EM_X86_64"}[arch]
