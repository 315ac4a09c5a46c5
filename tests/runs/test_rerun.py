"""A run of a developer's own kernel, done again: as it was, and after the kernel has been built again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs.conftest import Done, figures, rig

pytestmark = pytest.mark.vm


def environment(done: Done) -> dict[str, object]:
    found: dict[str, object] = done.results["x86_64"]["environment"]
    return found


def flipped(done: Done) -> tuple[int, int]:
    """The pgd entry that was changed, and the bits of it."""
    (entry,) = figures(done.results["x86_64"], "pgd-survives")["entries_changed"]
    return entry["index"], entry["before"] ^ entry["after"]


def test_the_very_same_run_and_then_not_any_more(own_bzimage: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(own_bzimage.read_bytes())
    # The debugger flips a bit of the pgd by random: by the recorded seed the same one again.
    line = ("run", "flipped-bit", "--guest", "x86_64", "--crash-kernel", kernel, "--json")
    first = rig(*line, "--results", tmp_path / "first")
    assert first.status == 0, first.err
    evidence = first.directories["x86_64"]
    manifest = json.loads((evidence / "run.json").read_text())["manifest"]
    packages = {package["name"] for package in manifest["packages"].values()}
    assert {"busybox-static", "kexec-tools", "dropbear-bin"} <= packages
    assert manifest["sha256"][str(kernel)] == first.results["x86_64"]["crash_kernel"]["sha256"]

    again = rig("rerun", evidence, "--json", "--results", tmp_path / "again")
    assert again.status == 0, again.err
    assert again.document["rerun"]["differences"] == []
    assert again.document["rerun"]["changes"] == []
    for key in ("sabotage_seed", "cmdline", "qemu", "accel"):
        assert environment(again)[key] == environment(first)[key]
    assert flipped(again) == flipped(first)

    kernel.write_bytes(kernel.read_bytes() + b"\0")  # behind the end that its header tells: it boots all the same
    refused = rig("rerun", evidence, "--results", tmp_path / "refused")
    assert refused.status == 3
    assert f"{kernel} has changed" in " ".join(refused.err.split())
    assert not (tmp_path / "refused").exists()

    anyway = rig("rerun", evidence, "--anyway", "--json", "--results", tmp_path / "anyway")
    assert anyway.status == 0, anyway.err
    told = environment(anyway)["rerun"]
    assert isinstance(told, dict)
    assert told["of"] == str(evidence)
    assert any(str(kernel) in difference for difference in told["differences"])
    assert flipped(anyway) == flipped(first)
