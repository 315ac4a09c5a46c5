from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.errors import MachineError
from rig.vm.installed import _installed, confinement, parse_version, qemu_version, sandboxes
from rig.vm.machine import QEMU


def test_version() -> None:
    assert parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright") == (7, 2, 22)
    assert parse_version("QEMU emulator version 10.0.0") > (7, 2)
    with pytest.raises(MachineError, match="says 'nonsense'"):
        parse_version("nonsense\n")


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The only directory in PATH; QEMU is asked anew."""
    monkeypatch.setenv("PATH", str(tmp_path))
    _installed.cache_clear()
    yield tmp_path
    _installed.cache_clear()


def install(path: Path, name: str, output: str = "") -> None:
    """A program that prints a line."""
    program = path / name
    program.write_text(f"#!/bin/sh\necho '{output}'\n")
    program.chmod(0o755)


def test_missing_qemu_is_told_with_a_remedy(path: Path) -> None:
    install(path, "setpriv")
    with pytest.raises(MachineError, match="qemu-system-x86_64 is not installed") as caught:
        qemu_version()
    assert "qemu-system-x86" in caught.value.hint


def test_missing_setpriv_is_told(path: Path) -> None:
    install(path, QEMU, "QEMU emulator version 8.2.0")
    with pytest.raises(MachineError, match="setpriv is not installed"):
        qemu_version()


def test_old_qemu_is_refused(path: Path) -> None:
    install(path, "setpriv")
    install(path, QEMU, "QEMU emulator version 5.2.0 (Debian 1:5.2)")
    with pytest.raises(MachineError, match=r"QEMU 5\.2\.0 is too old"):
        qemu_version()
    install(path, QEMU, "QEMU emulator version 7.2.0")
    assert qemu_version() == "QEMU emulator version 7.2.0"
    assert sandboxes()


def test_qemu_without_a_sandbox_is_found_out(path: Path) -> None:
    """As softmmu/vl.c has it where it is built without CONFIG_SECCOMP."""
    install(path, "setpriv")
    install(path, QEMU)
    (path / QEMU).write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -sandbox ]; then echo "-sandbox support is not enabled in this QEMU binary" >&2; exit 1; fi\n'
        'echo "QEMU emulator version 8.2.0"\n'
    )
    assert qemu_version() == "QEMU emulator version 8.2.0"
    assert confinement()["seccomp"] is False
