"""The program that makes a kexec jump: it compiles for both architectures, and refuses what it does not know."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from rig.catalog import roots
from rig.errors import MachineError
from rig.guest import program
from rig.guest.cache import Cache
from rig.guest.userland import elf_needs
from rig.model import Arch

SOURCE = roots()[0] / "guests" / "jump" / "jump.c"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path, lambda _: None)


@pytest.mark.parametrize("arch", list(Arch))
def test_it_needs_nothing_of_the_guest_and_says_how_it_is_called(arch: Arch, cache: Cache) -> None:
    built = program.build(SOURCE, arch, cache)
    needs = elf_needs(built)
    assert (needs.interpreter, needs.libraries) == (None, ())
    for words in ([], ["load"], ["load", "0x10"], ["load", "100000", "idt"], ["enter", "100000"]):
        done = subprocess.run([built, *words], capture_output=True, text=True, timeout=10)
        assert (done.returncode, done.stderr) == (errno.EINVAL, "jump load ADDRESS [gdt] | jump enter\n"), words


def test_it_is_built_once(cache: Cache) -> None:
    first = program.build(SOURCE, Arch.AMD64, cache)
    made = first.stat().st_mtime_ns
    assert program.build(SOURCE, Arch.AMD64, cache).stat().st_mtime_ns == made


def test_what_the_compiler_says_is_told(tmp_path: Path, cache: Cache) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("void _start(void) { nonsense }\n")
    with pytest.raises(MachineError, match="nonsense"):
        program.build(broken, Arch.AMD64, cache)
