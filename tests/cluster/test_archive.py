"""Evidence from another machine: whole, or refused, and never written anywhere else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import zstandard

from rig.cluster import archive
from rig.errors import EvidenceError


def packed(*members: tarfile.TarInfo) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return zstandard.compress(raw.getvalue())


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
    return info


def test_what_was_packed_comes_out_the_same(tmp_path: Path) -> None:
    (tmp_path / "from/memory").mkdir(parents=True)
    (tmp_path / "to/memory").mkdir(parents=True)  # as an EvidenceWriter has made it
    contents = {"run.json": b"{}", "memory/panic.pages.zst": bytes(range(256)) * 9000, "empty": b""}
    for name, content in contents.items():
        (tmp_path / "from" / name).write_bytes(content)
    archive.unpack(archive.pack(tmp_path / "from"), tmp_path / "to")
    found = {str(p.relative_to(tmp_path / "to")): p.read_bytes() for p in (tmp_path / "to").rglob("*") if p.is_file()}
    assert found == contents


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil"),
        member("a/../../evil"),
        member("/tmp/rig-evil"),
        member("evil", tarfile.SYMTYPE, "/etc/passwd"),
        member("evil", tarfile.LNKTYPE, "run.json"),
        member("evil", tarfile.FIFOTYPE),
        member("evil", tarfile.CHRTYPE),
        member("evil", tarfile.DIRTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type.decode()}",
)
def test_nothing_but_files_inside(bad: tarfile.TarInfo, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(EvidenceError, match="what no evidence has"):
        archive.unpack(packed(member("run.json"), bad), inside)
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "run.json"]
    assert not Path("/tmp/rig-evil").exists()


def test_a_name_that_comes_twice(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="can't be unpacked"):
        archive.unpack(packed(member("run.json"), member("run.json")), tmp_path)


@pytest.mark.parametrize("cut", [0, 5, -9])
def test_what_is_torn(cut: int, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from/run.json").write_bytes(bytes(range(256)) * 50)
    with pytest.raises(EvidenceError, match="can't be unpacked"):
        archive.unpack(archive.pack(tmp_path / "from")[:cut], tmp_path / "to")
