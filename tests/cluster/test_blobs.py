"""Files by their hash: whole or not there."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from rig.cluster import blobs
from rig.cluster.blobs import Blobs
from rig.errors import EvidenceError

CONTENT = bytes(range(256)) * 64


def name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


SHA = name(CONTENT)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "PIECE", 5000)


def test_from_store_to_store_in_pieces(tmp_path: Path) -> None:
    here, there = Blobs(tmp_path / "here"), Blobs(tmp_path / "there")
    assert here.lacks([SHA]) == [SHA]
    for at in range(0, len(CONTENT), 5000):
        assert here.lacks([SHA]) == [SHA]  # not before the last piece
        here.add_piece(SHA, "a client", at, CONTENT[at : at + 5000], len(CONTENT))
    there.fetch(SHA, here.read)
    assert there.lacks([SHA]) == []
    assert there.path(SHA).read_bytes() == CONTENT


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    here = Blobs(tmp_path)
    here.add_piece(name(b""), "a client", 0, b"", 0)
    assert here.lacks([name(b"")]) == []


def test_other_bytes_are_refused_and_not_kept(tmp_path: Path) -> None:
    here = Blobs(tmp_path)
    with pytest.raises(EvidenceError, match="has the SHA-256"):
        here.add_piece(SHA, "a client", 0, b"others", 6)
    with pytest.raises(EvidenceError, match="has the SHA-256"):
        here.fetch(SHA, lambda _, at: CONTENT[at : at + 4999] if at < 9000 else b"")  # cut short
    assert list((tmp_path / "blobs").iterdir()) == []


@pytest.mark.parametrize("sha256", ["", "../../etc/passwd", SHA[:-1], SHA.upper()])
def test_what_is_no_hash_names_no_file(sha256: str, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="no SHA-256"):
        Blobs(tmp_path).read(sha256, 0)


def test_it_is_fetched_once_however_many_want_it(tmp_path: Path) -> None:
    firsts: list[int] = []

    def fetch(_: str, at: int) -> bytes:
        if not at:
            firsts.append(at)
        return CONTENT[at : at + 1000]

    threads = [threading.Thread(target=Blobs(tmp_path).fetch, args=(SHA, fetch)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert firsts == [0]


def test_the_same_path_with_other_bytes_lies_elsewhere(tmp_path: Path) -> None:
    here = Blobs(tmp_path)
    for content in (b"one", b"two"):
        here.add_piece(name(content), "a client", 0, content, 3)
    first, second = (here.lay_out({"cache/kernels/k": name(content)}) for content in (b"one", b"two"))
    assert (first / "cache/kernels/k").read_bytes() == b"one"
    assert (second / "cache/kernels/k").read_bytes() == b"two"
    assert here.lay_out({"cache/kernels/k": name(b"one")}) == first


@pytest.mark.parametrize("path", ["cache/../../../evil", "/../evil"])
def test_no_path_leads_out(path: str, tmp_path: Path) -> None:
    here = Blobs(tmp_path)
    here.add_piece(name(b"one"), "a client", 0, b"one", 3)
    with pytest.raises(EvidenceError, match="no path of a manifest"):
        here.lay_out({path: name(b"one")})
