"""What goes with a cell, and what comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rig import ingredients
from rig.cluster import archive, parcel
from rig.errors import EvidenceError
from rig.evidence.writer import to_json
from rig.facts import Facts, Manifest
from rig.model import RunPlan
from tests.test_ingredients import made
from tests.test_pool import make_plan, make_result

PLAN = make_plan("pae")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return ingredients.record(made(tmp_path / "cache", tmp_path / "bzImage"), tmp_path / "cache", "")


def packed(directory: Path, plan: RunPlan, manifest: Manifest | None) -> bytes:
    directory.mkdir()
    (directory / "run.json").write_bytes(to_json(Facts("0", plan, manifest=manifest)))
    (directory / "result.json").write_bytes(to_json(make_result(plan)))
    return archive.pack(directory)


def test_every_file_goes_by_its_hash(tmp_path: Path, manifest: Manifest) -> None:
    sent = parcel.gathered(manifest, tmp_path / "cache")
    assert set(sent.files) == set(manifest.sha256.values())
    kernel = manifest.sha256["cache/trees/kernel-0123456789ab/boot/vmlinuz"]
    assert sent.files[kernel] == tmp_path / "cache/trees/kernel-0123456789ab/boot/vmlinuz"
    assert sent.files[manifest.sha256[str(tmp_path / "bzImage")]] == tmp_path / "bzImage"


def test_what_comes_back_is_one_more_directory(tmp_path: Path, manifest: Manifest) -> None:
    blob = packed(tmp_path / "made", PLAN, manifest)
    first, second = (parcel.place(blob, PLAN, manifest, tmp_path / "results") for _ in range(2))
    assert first[0] == make_result(PLAN)
    assert [where.name for _, where in (first, second)] == [PLAN.slug, f"{PLAN.slug}.2"]


def test_a_run_that_broke_off_before_its_files_were_looked_at_is_a_run(tmp_path: Path, manifest: Manifest) -> None:
    _, where = parcel.place(packed(tmp_path / "made", PLAN, None), PLAN, manifest, tmp_path / "results")
    assert where.is_dir()


def test_what_is_not_as_it_was_ordered_is_not_kept(tmp_path: Path, manifest: Manifest) -> None:
    other = replace(manifest, sha256=dict(manifest.sha256) | {"cache/modules/damage.ko": "00"})
    changed = replace(PLAN, guest=replace(PLAN.guest, memory=PLAN.guest.memory + 1))
    bad = {
        "other files": packed(tmp_path / "a", PLAN, other),
        "not of panic@pae/k as it was planned": packed(tmp_path / "b", changed, manifest),
        "can't be unpacked": b"no archive",
    }
    (tmp_path / "results").mkdir()
    for words, blob in bad.items():
        with pytest.raises(EvidenceError, match=words):
            parcel.place(blob, PLAN, manifest, tmp_path / "results")
    assert list((tmp_path / "results").iterdir()) == []
