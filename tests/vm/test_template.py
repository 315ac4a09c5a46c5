"""Templates of machines without an operating system: a counter in memory shows where each goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from rig.errors import GuestDied, ProtocolError
from rig.model import PAGE_SIZE
from rig.vm.deadline import Deadline
from rig.vm.machine import MachineSpec
from rig.vm.qemu import Standing, Vm
from rig.vm.template import RAM, STATE, TOLD, Template, Templates, hindrance

MakeSpec = Callable[..., MachineSpec]
COUNTER = 0x200000
COUNT = b"\xff\x05" + struct.pack("<I", COUNTER) + b"\xeb\xf8"  # inc dword [COUNTER]; jmp to itself
KEY = "0123"


def counter(vm: Vm) -> int:
    return int.from_bytes(vm.ram.read(4, COUNTER), "little")


def wait_for_count(vm: Vm, above: int) -> None:
    deadline = Deadline.after(30, f"the counter above {above}")
    while counter(vm) <= above:
        deadline.check()


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    return Templates(tmp_path / "templates")


@pytest.fixture
def kept(templates: Templates, make_spec: MakeSpec) -> tuple[MachineSpec, int]:
    """A machine of which a template was made, and its counter then."""
    spec = make_spec(COUNT)
    with Vm(spec) as vm, templates.making(KEY) as making:
        assert making is not None
        wait_for_count(vm, 1000)
        vm.stop()
        making.keep(vm, b"told")
        count = counter(vm)
        vm.cont()
        wait_for_count(vm, count)  # the original goes on, too
    return spec, count


def found(templates: Templates, said: list[str]) -> Template | None:
    with templates.find(KEY, said.append) as template:
        return template


@pytest.mark.vm
def test_each_clone_goes_on_where_the_original_was_kept(
    templates: Templates, kept: tuple[MachineSpec, int], tmp_path: Path
) -> None:
    spec, count = kept
    for number in range(2):
        with contextlib.ExitStack() as stack:
            template = stack.enter_context(templates.find(KEY, pytest.fail))
            assert template is not None
            assert template.told == b"told"
            run_dir = tmp_path / f"clone-{number}"
            run_dir.mkdir()
            vm = stack.enter_context(Vm(replace(spec, run_dir=run_dir, initrd=None), standing=template.standing))
            # held, with the memory of the original: so the first clone has changed nothing in the template
            assert counter(vm) == count
            vm.cont()
            wait_for_count(vm, count + 1000)


@pytest.mark.vm
def test_clones_run_side_by_side_from_one_copy_in_memory(
    templates: Templates, kept: tuple[MachineSpec, int], tmp_path: Path
) -> None:
    spec, count = kept
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(templates.find(KEY, pytest.fail)) for _ in range(2))
        assert first is not None
        assert first is second
        shutil.rmtree(tmp_path / "templates")  # it is no longer needed
        vms = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            clone = replace(spec, run_dir=tmp_path / name, initrd=None)
            vms.append(stack.enter_context(Vm(clone, standing=first.standing)))
        one, other = vms
        one.cont()
        wait_for_count(one, count + 1000)
        assert counter(other) == count
        other.cont()
        wait_for_count(other, count + 1000)
        with pytest.raises(PermissionError):
            os.pwrite(first.standing.ram, b"x", COUNTER)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first.standing.ram)  # the last one has closed it


@pytest.mark.vm
def test_what_a_clone_has_changed_is_what_qemu_sees(
    templates: Templates, kept: tuple[MachineSpec, int], tmp_path: Path
) -> None:
    """All of it, read over QMP."""
    spec, count = kept

    def pages(vm: Vm) -> list[bytes]:
        blob = vm.pmemsave(0, spec.ram_size)
        return [blob[at : at + PAGE_SIZE] for at in range(0, len(blob), PAGE_SIZE)]

    with contextlib.ExitStack() as stack:
        template = stack.enter_context(templates.find(KEY, pytest.fail))
        assert template is not None
        (tmp_path / "clone").mkdir()
        clone = replace(spec, run_dir=tmp_path / "clone", initrd=None)
        vm = stack.enter_context(Vm(clone, standing=template.standing))
        vm.cont()
        wait_for_count(vm, count)
        vm.stop()
        before, capture = pages(vm), vm.ram.capture()
        hashes = dict(enumerate(capture.hashes().tolist()))
        for window in range(0xA0, 0xC0):  # the VGA's, which hides the RAM there from QMP
            del hashes[window]
        assert hashes == {pfn: xxhash.xxh3_64_intdigest(before[pfn]) for pfn in hashes}
        vm.gdb.attach()
        vm.gdb.write_physical(0x310000 - 2, b"debugger")
        vm.gdb.detach()
        wait_for_count(vm, counter(vm))
        vm.stop()
        after = pages(vm)
        differs = [pfn for pfn, (then, now) in enumerate(zip(before, after, strict=True)) if then != now]
        assert capture.changed().tolist() == differs
        assert {COUNTER // PAGE_SIZE, 0x30F, 0x310} <= set(differs)


@pytest.mark.vm
def test_a_clone_that_is_gone_can_not_be_read(
    templates: Templates, kept: tuple[MachineSpec, int], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        template = stack.enter_context(templates.find(KEY, pytest.fail))
        assert template is not None
        (tmp_path / "clone").mkdir()
        clone = replace(kept[0], run_dir=tmp_path / "clone", initrd=None)
        vm = stack.enter_context(Vm(clone, standing=template.standing))
        capture = vm.ram.capture()
        os.kill(vm.pid, signal.SIGKILL)
        for read in (lambda: counter(vm), capture.changed, vm.ram.capture):
            with pytest.raises(GuestDied, match="QEMU"):
                _until_it_raises(read)


def _until_it_raises(read: Callable[[], object]) -> None:
    deadline = Deadline.after(30, "QEMU to be gone")
    while True:
        read()
        deadline.check()


@pytest.mark.vm
def test_a_state_that_is_none_is_refused(make_spec: MakeSpec) -> None:
    spec = make_spec(COUNT)
    with contextlib.ExitStack() as stack:
        ram, state = os.memfd_create("ram"), os.memfd_create("state")
        stack.callback(os.close, ram)
        stack.callback(os.close, state)
        os.ftruncate(ram, spec.ram_size)
        os.write(state, b"no state of any machine")
        os.lseek(state, 0, os.SEEK_SET)
        standing = Standing(ram, state, bytes(spec.ram_size // PAGE_SIZE * 8), "ttyS1")
        # QEMU 7.2 ends, others may say why
        with pytest.raises((GuestDied, ProtocolError), match="migrate"), Vm(spec, standing=standing):
            pass


@pytest.mark.vm
@pytest.mark.parametrize(("name", "at", "says"), [(RAM, COUNTER, "RAM"), (STATE, 100, "state"), (TOLD, 0, "damaged")])
@pytest.mark.usefixtures("kept")
def test_a_damaged_template_is_dropped(templates: Templates, tmp_path: Path, name: str, at: int, says: str) -> None:
    with (tmp_path / "templates" / KEY / name).open("r+b") as file:
        file.seek(at)
        was = file.read(1)
        file.seek(at)
        file.write(bytes([was[0] ^ 0xFF]))
    said: list[str] = []
    assert found(templates, said) is None
    assert says in "".join(said)
    assert not (tmp_path / "templates" / KEY).exists()


@pytest.mark.vm
@pytest.mark.usefixtures("kept")
def test_a_template_of_yesterday_is_not_used(tmp_path: Path) -> None:
    seal = tmp_path / "templates" / KEY / TOLD
    yesterday = seal.stat().st_mtime - 25 * 3600
    os.utime(seal, (yesterday, yesterday))
    assert found(Templates(tmp_path / "templates"), []) is None
    assert not seal.exists()


@pytest.mark.vm
@pytest.mark.usefixtures("kept")
def test_what_is_being_read_is_not_dropped(templates: Templates, tmp_path: Path) -> None:
    directory = tmp_path / "templates" / KEY
    with templates.making(KEY) as making:
        assert making is None  # there is one
    lock = os.open(directory, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_SH)
        Templates(tmp_path / "templates", limit=0).evict()
        assert found(templates, []) is not None
    finally:
        os.close(lock)
    Templates(tmp_path / "templates", limit=0).evict()
    assert not directory.exists()


def test_the_least_recently_used_are_evicted(tmp_path: Path) -> None:
    now = tmp_path.stat().st_mtime
    for name, used in (("old", now - 20), ("new", now), ("middle", now - 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / RAM).write_bytes(b"x" * (1 << 20))
        (tmp_path / name / TOLD).touch()
        os.utime(tmp_path / name, (used, used))
    Templates(tmp_path, limit=2 << 20 | 4096).evict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "new"]


def test_where_no_process_may_read_anothers_memory(tmp_path: Path) -> None:
    assert hindrance() == ""
    assert "mem: No such file" in hindrance(tmp_path)


def test_one_makes_it_at_a_time(templates: Templates, tmp_path: Path) -> None:
    with templates.making(KEY) as first, templates.making(KEY) as second:
        assert first is not None
        assert second is None
        assert found(templates, []) is None  # not complete
        assert (tmp_path / "templates" / KEY).stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "templates" / KEY).exists()  # never completed


def test_what_a_killed_rig_left_is_made_anew(templates: Templates, tmp_path: Path) -> None:
    directory = tmp_path / "templates" / KEY
    directory.mkdir(parents=True)
    (directory / RAM).write_bytes(b"half")
    assert found(templates, []) is None
    assert not directory.exists()
    with templates.making(KEY) as making:
        assert making is not None
    templates.drop(KEY)  # gone already: nothing happens
