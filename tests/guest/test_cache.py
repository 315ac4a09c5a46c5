"""Made once, complete or not at all, alone."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from rig.errors import MachineError, PackageError, UnsuitableKernel
from rig.guest.cache import Cache, blaming, default_root


class Made(msgspec.Struct):
    files: list[str]

    def paths(self) -> list[str]:
        return self.files


def make_file(text: str, calls: list[str]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        calls.append(text)
        path.write_text(text)

    return make


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", lambda _: None)


def test_an_artefact_is_made_once(cache: Cache) -> None:
    calls: list[str] = []
    for text in ("first", "second"):
        assert cache.once("a/b", make_file(text, calls)).read_text() == "first"
    assert calls == ["first"]


def test_what_is_at_hand_is_kept_while_another_rig_has_the_lock(cache: Cache) -> None:
    other = Cache(cache.root, lambda _: None)
    with other.locked():
        for data in (b"first", b"second"):
            cache.keep("a/b", data)
    assert [path.read_bytes() for path in (cache.root / "a").iterdir()] == [b"second"]
    (cache.root / "c").write_text("a file")
    with pytest.raises(MachineError, match="can't be used"):
        cache.keep("c/d", b"")


def test_what_fails_half_way_leaves_nothing(cache: Cache) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise PackageError("torn")

    with pytest.raises(PackageError):
        cache.once("a", fail)
    assert not (cache.root / "a").exists()
    assert list((cache.root / "tmp").iterdir()) == []


def test_what_a_killed_rig_left_is_cleared(cache: Cache) -> None:
    (cache.root / "tmp").mkdir(parents=True)
    (cache.root / "tmp/torn").write_text("half")
    with cache.locked():
        assert list((cache.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("damage", ["none", "torn record", "other record", "artefact gone"])
def test_a_record_holds_as_long_as_it_is_whole(cache: Cache, damage: str) -> None:
    made: list[int] = []

    def make() -> Made:
        made.append(1)
        cache.once("thing", make_file("x", []))
        return Made(["thing"])

    for _ in range(2):
        assert cache.recorded("r.json", Made, make) == Made(["thing"])
    match damage:
        case "torn record":
            (cache.root / "r.json").write_text('{"files": ["thi')
        case "other record":
            (cache.root / "r.json").write_text('{"files": 7}')
        case "artefact gone":
            (cache.root / "thing").unlink()
    assert cache.recorded("r.json", Made, make) == Made(["thing"])
    assert len(made) == (1 if damage == "none" else 2)


def test_refresh_makes_each_record_anew_once(cache: Cache) -> None:
    cache.recorded("r.json", Made, lambda: Made([]))
    made: list[int] = []

    def make() -> Made:
        made.append(1)
        return Made([])

    fresh = Cache(cache.root, lambda _: None, refresh=True)
    for _ in range(2):
        fresh.recorded("r.json", Made, make)
    assert len(made) == 1


def test_a_failed_refresh_keeps_the_old_record(cache: Cache) -> None:
    def fail() -> Made:
        raise PackageError("no network")

    cache.recorded("r.json", Made, lambda: Made([]))
    with pytest.raises(PackageError):
        Cache(cache.root, lambda _: None, refresh=True).recorded("r.json", Made, fail)
    assert cache.recorded("r.json", Made, fail) == Made([])


def test_two_rigs_on_one_cache_wait_for_each_other_and_say_so(cache: Cache) -> None:
    waiting, said = threading.Event(), list[str]()

    def progress(message: str) -> None:
        said.append(message)
        waiting.set()

    other = Cache(cache.root, progress)
    calls: list[str] = []
    thread = threading.Thread(target=lambda: other.once("a", make_file("other", calls)))
    with cache.locked():
        thread.start()
        assert waiting.wait(5)
        cache.once("a", make_file("mine", calls))
    thread.join(5)
    assert not thread.is_alive()
    assert calls == ["mine"]
    assert "another rig" in said[0]


def test_no_disk_space_is_the_machines_fault(cache: Cache) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(MachineError, match="No space left") as caught:
        cache.once("a", full)
    assert "RIG_CACHE" in caught.value.hint


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="file/cache"), Cache(tmp_path / "file/cache", print).locked():
        pass


def test_a_damaged_file_of_the_cache_is_no_wrong_request_and_one_of_the_users_is(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="vmlinux: No such file") as caught, blaming(cache.root):
        (cache.root / "kernels" / "vmlinux").read_bytes()
    assert "is made anew" in caught.value.hint
    with pytest.raises(MachineError, match="is not a bzImage"), blaming(cache.root):
        raise UnsuitableKernel(f"{cache.root}/kernels/one/bzImage is not a bzImage")
    with pytest.raises(UnsuitableKernel), blaming(cache.root):
        raise UnsuitableKernel(f"{tmp_path}/bzImage is not a bzImage")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RIG_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_root() == tmp_path / "mine"
    monkeypatch.delenv("RIG_CACHE")
    assert default_root() == tmp_path / "xdg/rig"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_root() == tmp_path / "home/.cache/rig"
