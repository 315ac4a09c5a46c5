"""The CI files: what they rely on of each other and of the command line. Neither service is asked."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rig import cli

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / ".github/workflows"
GITLAB = ROOT / ".gitlab-ci.yml"
NOT_JOBS = ("stages", "workflow", "default", "variables")
SCRIPTS = ("before_script", "script", "after_script")


def load(path: Path) -> dict[Any, Any]:
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    return document


def nightly() -> dict[str, Any]:
    jobs: dict[str, Any] = load(WORKFLOWS / "nightly.yml")["jobs"]
    return jobs


def uses(job: dict[str, Any], action: str) -> dict[str, Any]:
    """The one step of this job that uses the action."""
    [step] = [step for step in job["steps"] if step.get("uses", "").partition("@")[0] == action]
    return dict(step)


def scripts() -> Iterator[tuple[str, str]]:
    """(where, shell script) of every step of every CI file, what the service fills in taken as 1."""
    for path in sorted(WORKFLOWS.glob("*.yml")):
        for name, job in load(path)["jobs"].items():
            for step in job["steps"]:
                if "run" in step:
                    yield f"{path.name}:{name}", re.sub(r"\$\{\{.*?\}\}", "1", step["run"])
    for name, job in load(GITLAB).items():
        if name not in NOT_JOBS:
            for key in SCRIPTS:
                for line in job.get(key, []):
                    yield f"{GITLAB.name}:{name}", re.sub(r"\$CI_NODE_(INDEX|TOTAL)", "1", line)


@pytest.mark.parametrize(("where", "script"), list(scripts()))
def test_every_step_is_shell_and_asks_the_rig_for_what_it_has(where: str, script: str) -> None:
    done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{where}: {done.stderr}"
    for line in script.splitlines():
        if called := re.search(r"\./rigw ((?:matrix|report) .*)", line):
            words = re.sub(r"\$\(.*?\)", "kept", called[1]).replace("$CELLS", "nightly")
            args = cli.parser().parse_args(shlex.split(words))
            if args.command == "report":
                assert args.html == Path("public" if where.startswith(GITLAB.name) else "site")
                continue
            assert args.patterns == ["nightly"]
            assert args.shard == (1, 1 if where.startswith(GITLAB.name) else 4)


@pytest.mark.parametrize(
    ("schema", "paths"), [("github-workflows", sorted(WORKFLOWS.glob("*.yml"))), ("gitlab-ci", [GITLAB])]
)
def test_the_files_are_what_the_services_schemas_ask_for(schema: str, paths: list[Path]) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actions_are_pinned_by_major_version() -> None:
    steps = [step for path in WORKFLOWS.glob("*.yml") for job in load(path)["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"actions/[a-z/-]+@v[0-9]+", name)] == []


def test_the_nights_shards_are_all_run_kept_and_reported_on_github() -> None:
    jobs = nightly()
    shard, report = jobs["shard"], jobs["report"]
    numbers = shard["strategy"]["matrix"]["shard"]
    [run] = [step["run"] for step in shard["steps"] if "--shard" in step.get("run", "")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert f"/{len(numbers)} --results shard-" in run
    assert shard["strategy"]["fail-fast"] is False  # one red shard does not cost the others
    kept = uses(shard, "actions/upload-artifact")
    assert kept["if"] == "always()"
    assert kept["with"]["path"] == kept["with"]["name"] == "shard-${{ matrix.shard }}"
    restored, saved = (uses(shard, f"actions/cache/{what}") for what in ("restore", "save"))
    assert "~/.cache/rig/*" in saved["with"]["path"].split()
    assert restored["with"]["path"] == saved["with"]["path"]  # else it is another cache
    assert saved["if"] == "always()"
    assert (report["needs"], report["if"]) == ("shard", "${{ !cancelled() }}")
    assert uses(report, "actions/download-artifact")["with"]["pattern"] == "shard-*"
    assert uses(report, "actions/upload-pages-artifact")["with"]["path"] == "site"
    before, after = (uses(report, f"actions/cache/{what}")["with"] for what in ("restore", "save"))
    assert (before["path"], before["key"]) == (after["path"], after["key"])
    assert after["key"].startswith(before["restore-keys"])
    # The report of a red night is made and published, and the night is red.
    assert report["steps"][-1]["run"] == 'test "${{ needs.shard.result }}" = success'
    assert jobs["publish"]["needs"] == "report"
    assert "!cancelled()" in jobs["publish"]["if"]


def test_the_nights_shards_are_all_run_kept_and_reported_on_gitlab() -> None:
    jobs = load(GITLAB)
    shard, pages = jobs["shard"], jobs["pages"]
    assert shard["parallel"] > 1
    assert any('--shard "$CI_NODE_INDEX/$CI_NODE_TOTAL"' in line for line in shard["script"])
    assert shard["artifacts"]["when"] == shard["cache"]["when"] == "always"
    assert shard["artifacts"]["paths"] == ["shard-*"]
    assert jobs["variables"]["RIG_CACHE"] == f"$CI_PROJECT_DIR/{shard['cache']['paths'][0]}"
    assert jobs["stages"].index(shard["stage"]) < jobs["stages"].index(pages["stage"])
    assert [rule["when"] for rule in pages["rules"]] == ["always"]
    assert "public" in pages["artifacts"]["paths"]
    assert "--html public" in pages["script"][0]
    assert pages["cache"]["paths"] == ["kept"]
    assert not shard.get("allow_failure")


def test_a_change_is_tested_by_the_script_that_tests_everything() -> None:
    [job] = load(WORKFLOWS / "pull-request.yml")["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run"
    assert load(GITLAB)["test"]["script"] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_no_machine_of_anybodys_is_named() -> None:
    for path in (*WORKFLOWS.glob("*.yml"), GITLAB):
        assert "://" not in path.read_text()
