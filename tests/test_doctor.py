from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rig import doctor
from rig.doctor import Row, State
from rig.errors import MachineError
from rig.pool import guest_need


@pytest.mark.parametrize(
    ("version", "state"),
    [(None, State.MISSING), ((5, 2, 0), State.MISSING), ((7, 2, 22), State.OK), ((10, 0), State.OK)],
)
def test_qemu(version: tuple[int, ...] | None, state: State) -> None:
    row = doctor.qemu_row(version)
    assert row.state is state
    assert bool(row.remedy) == (state is State.MISSING)


@pytest.mark.parametrize(("version", "state"), [((3, 9, 2), State.MISSING), ((3, 11, 0), State.OK)])
def test_python(version: tuple[int, ...], state: State) -> None:
    assert doctor.python_row(version).state is state


def test_memory() -> None:
    assert doctor.memory_row(guest_need(2048), [512, 2048]).state is State.OK
    assert doctor.memory_row(guest_need(2048) - 1, [512, 2048]).state is State.WARNING  # the smaller guest still fits
    assert doctor.memory_row(guest_need(512) - 1, [512, 2048]).state is State.MISSING


def test_every_lack_of_a_tool_has_a_remedy() -> None:
    for name in doctor.TOOLS:
        lacking = doctor.tool_row(name, None)
        assert lacking.state is not State.OK
        assert doctor.TOOLS[name][1] in lacking.remedy
        assert doctor.tool_row(name, f"/usr/bin/{name}") == Row(name, State.OK, f"/usr/bin/{name}")


def test_remedies_where_there_is_no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert doctor.install("gcc") == "install what Debian calls gcc"


def test_the_accelerator_is_asked_for() -> None:
    def none() -> str:
        raise MachineError("KVM was asked for, but a guest crawls", hint="use --accel tcg")

    assert doctor.accel_row(lambda: "tcg") == Row("accelerator", State.OK, "tcg")
    assert doctor.accel_row(none).state is State.MISSING
    assert doctor.accel_row(none).remedy == "use --accel tcg"


def test_how_a_qemu_is_confined() -> None:
    assert doctor.confinement_row(lambda: {"seccomp": True, "landlock": 7}) == Row(
        doctor.CONFINEMENT, State.OK, "seccomp, Landlock"
    )
    lacking = doctor.confinement_row(lambda: {"seccomp": False, "landlock": 0})
    assert (lacking.state, lacking.found) == (State.WARNING, "no seccomp, no Landlock")
    assert "5.13" in lacking.remedy


def test_space(tmp_path: Path) -> None:
    assert doctor.space_row("space", tmp_path / "not/yet/there", 1).state is State.OK
    full = doctor.space_row("space", tmp_path, 1 << 40)
    assert full.state is State.MISSING
    assert "MiB more" in full.remedy
    (tmp_path / "file").write_text("")
    assert doctor.space_row("space", tmp_path / "file/below", 1).state is State.MISSING


def test_a_warm_cache_needs_no_network(tmp_path: Path) -> None:
    assert doctor.cache_row(tmp_path / "nowhere").state is State.WARNING
    (tmp_path / "debs/0123").mkdir(parents=True)
    (tmp_path / "debs/0123/linux.deb").write_text("")
    assert doctor.cache_row(tmp_path).state is State.OK


def test_versions_of_programs(tmp_path: Path) -> None:
    def script(text: str) -> str:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    assert doctor.probe_version(script("echo 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)'")) == (7, 2, 22)
    assert doctor.probe_version(script("echo 'version 7.2'; exit 1")) is None
    assert doctor.probe_version(script("echo hello")) is None
    assert doctor.probe_version(str(tmp_path / "nowhere")) is None


def test_exit_code_and_lines() -> None:
    rows = [Row("qemu", State.OK, "7.2"), Row("gcc", State.WARNING, "not found", "install gcc")]
    assert doctor.exit_code(rows) == 0
    assert doctor.exit_code([*rows, Row("memory", State.MISSING, "1 MiB", "buy some")]) == 3
    assert [line.split() for line in doctor.lines(rows)] == [
        ["ok", "qemu", "7.2"],
        ["warning", "gcc", "not", "found"],
        ["->", "install", "gcc"],
    ]
