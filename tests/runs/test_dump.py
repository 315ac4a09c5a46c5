"""The dump that a user gets, taken from real guests in each way."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.evidence.writer import to_json
from rig.judge import judge_dir
from tests.runs.conftest import figures, rig

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("name", "guest", "kind", "via"),
    [
        ("raw", "i386", "raw", "ssh"),
        ("disk", "x86_64", "raw", "disk"),
        ("makedumpfile", "pae", "makedumpfile", "ssh"),
        ("zlib", "x86_64", "makedumpfile", "ssh"),
        ("lzo", "i386", "makedumpfile", "ssh"),
    ],
)
def test_a_whole_dump_is_memory_at_panic_but_for_what_kexec_cost(
    name: str, guest: str, kind: str, via: str, tmp_path: Path
) -> None:
    done = rig("run", f"dump-{name}", "--guest", guest, "--json", "--results", tmp_path)
    assert done.status == 0, done.err
    found = figures(done.results[guest], "vmcore-faithful")
    assert (found["kind"], found["via"], found["unaccounted"]) == (kind, via, 0)
    # nothing at all would mean that the dump was held against itself: the crash notes alone are written after `panic`
    assert 0 < found["kexec_cost_bytes"] < 4096
    assert {"crash notes of CPU 0", "vmcoreinfo"} <= {entry["owner"] for entry in found["owners"]}
    if kind == "raw":
        assert found["pages_missing"] == 0
        assert found["transfer"]["bytes"] > found["bytes_compared"]
    elif name == "lzo":
        assert found["pages_excluded"] <= 1  # the page that is only half RAM
    else:
        assert found["pages_excluded"] > found["pages_compared"] > 0
    directory = done.directories[guest]
    assert to_json(judge_dir(directory)) == (directory / "result.json").read_bytes()
