"""Files of strangers: see also tests/fuzz/test_text_directories.py, where whole directories are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

from rig import reading
from rig.errors import EvidenceError, RequestError

SOURCE = Path("some.zst")


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path)
    assert reading.read_file(tmp_path, "inner/file", 5) == b"12345"
    assert reading.read_file(tmp_path / "link", "inner/file", 5) == b"12345"  # the user's own link
    with pytest.raises(EvidenceError, match="inner/file has 5 bytes, more than the 4"):
        reading.read_file(tmp_path, "inner/file", 4)
    with pytest.raises(FileNotFoundError):
        reading.read_file(tmp_path, "inner/other", 5)


def test_what_is_no_file_of_its_own_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "folder").symlink_to("/etc")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, said in (
        ("link", "link is a symbolic link"),
        ("folder/hostname", "folder is a symbolic link"),
        ("directory", "directory: Is a directory"),
        ("fifo", "fifo is not a regular file"),
        ("nul\0", "embedded null byte"),
        ("x" * 300, "File name too long"),
    ):
        with pytest.raises(EvidenceError, match=said):
            reading.read_file(tmp_path, name, 1 << 20)


def test_a_frame_is_unpacked_up_to_its_limit() -> None:
    packed = zstandard.compress(bytes(1000))
    assert reading.unpack(packed, 1000, SOURCE) == bytes(1000)
    streamed = zstandard.ZstdCompressor().compressobj()
    short = packed[:7].replace((1000 - 256).to_bytes(2, "little"), bytes(2)) + packed[7:]
    assert short != packed
    for blob, said in (
        (zstandard.compress(bytes(1001)), "unpacks to 1001 bytes, more than the 1000"),
        (streamed.compress(bytes(10)) + streamed.flush(), "does not say how many bytes"),
        (short, "decompression error"),  # it says 256
        (packed[:-2], "did not decompress full frame|decompression error"),
        (b"no zstd", "error"),
        (b"", "error"),
    ):
        with pytest.raises(EvidenceError, match=f"some.zst.*({said})"):
            reading.unpack(blob, 1000, SOURCE)


def test_what_nobody_foresaw_names_its_place() -> None:
    with pytest.raises(EvidenceError, match=r"run: the rig can make no sense of it: KeyError: 'x' in test_what_nob"):  # noqa: SIM117
        with reading.over_evidence(Path("run")):
            raise KeyError("x")
    with pytest.raises(RequestError, match="as it is"), reading.over_evidence(Path("run")):
        raise RequestError("as it is")
