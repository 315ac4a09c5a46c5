"""A matrix that can be stopped and gone on with: what it was asked for, which of its cells are finished, and the second
attempt at those that could not be judged.

RESULTS/matrix.json says what was asked for, from before the first guest on. Which cells are finished it does not say:
that is told by the result directories, which are whole or not there.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rig
from rig.errors import EvidenceError, RequestError
from rig.evidence.reader import MOST, Evidence, from_json
from rig.evidence.writer import to_json
from rig.facts import UNKNOWN
from rig.matrix import ENDED_WORKERS, RETRY_BECAUSE, RETRY_OF, reason
from rig.model import Kernel, KernelIdentity, RunPlan, RunResult, Verdict
from rig.pool import Finished
from rig.progress import NOTE, Progress
from rig.reading import read_file, write_anew

RECORD = "matrix.json"
BATCH = "batch"  # in a result's environment: `started` of the batch that it belongs to

# Runs cells, each once; results in the order of the plans, None where the event was set first. The mapping is what
# their environment is to say beyond the usual.
Execute = Callable[[Sequence[RunPlan], Mapping[str, Any], Progress, threading.Event], list[Finished | None]]


@dataclass(frozen=True)
class Batch:
    """matrix.json. shard: K/N, empty for the whole. started: UTC, ISO 8601. cells: the ids that were planned."""

    patterns: tuple[str, ...]
    shard: str
    started: str
    cells: tuple[str, ...]
    rig: str = rig.__version__
    schema: int = 1


# ---------------------------------------------------------------- matrix.json


def begin(results: Path, patterns: Sequence[str], shard: str, plans: Sequence[RunPlan]) -> Batch:
    """A new batch, recorded."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    batch = Batch(tuple(patterns), shard, now, tuple(plan.id for plan in plans))
    _write(results, batch)
    return batch


def resume(results: Path, patterns: Sequence[str], shard: str, plans: Sequence[RunPlan]) -> Batch:
    """The batch that was begun in this directory, with the cells that are planned today.

    :raise RequestError: there is none, it can't be read, or other cells were asked for
    """
    path = results / RECORD
    try:
        batch = from_json(read_file(results, RECORD, MOST), Batch, path)
    except FileNotFoundError:
        raise RequestError(
            f"nothing to resume: {path} is not there", hint="leave out --resume, or name the directory with --results"
        ) from None
    except (OSError, EvidenceError) as problem:
        raise RequestError(f"nothing to resume: {problem}", hint="leave out --resume") from problem
    if (batch.patterns, batch.shard) != (tuple(patterns), shard):
        raise RequestError(
            f"{path} is of another matrix: {_asked(batch.patterns, batch.shard)}, not {_asked(patterns, shard)}",
            hint="ask for the same, or leave out --resume",
        )
    batch = replace(batch, cells=tuple(plan.id for plan in plans))
    _write(results, batch)
    return batch


def _asked(patterns: Sequence[str], shard: str) -> str:
    return " ".join([*patterns, *(["--shard", shard] if shard else [])])


def _write(results: Path, batch: Batch) -> None:
    """The file is there whole or not at all, also when the power goes."""
    write_anew(results / RECORD, to_json(batch), durable=True)


# ---------------------------------------------------------------- what is finished


def find_finished(results: Path, batch: Batch, plans: Sequence[RunPlan]) -> list[Finished | None]:
    """For each plan the last whole result of this batch, None where there is none.

    A result counts when it is of the very same plan: after a change to a scenario's file its cells are run again.
    """
    directories: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(path for path in results.iterdir() if not path.is_symlink()):
        directories.setdefault(path.name, []).append((1, path))
        if numbered := re.fullmatch(r"(.+)\.(\d+)", path.name):  # or the first run of a kernel like debian-6.1
            directories.setdefault(numbered[1], []).append((int(numbered[2]), path))
    return [_last(plan, batch, sorted(directories.get(plan.slug, []), reverse=True)) for plan in plans]


def _last(plan: RunPlan, batch: Batch, directories: Sequence[tuple[int, Path]]) -> Finished | None:
    for _, path in directories:
        evidence = Evidence(path)
        try:
            facts, result = evidence.facts, evidence.result
        except EvidenceError:
            continue  # another program's, or torn when the power went: as good as not there
        mine = result.environment.get(BATCH) == batch.started and facts.plan == plan
        if mine and _is_unchanged(plan.kernel, facts.kernel) and _is_unchanged(plan.crash_kernel, facts.crash_kernel):
            return result, path
    return None


def _is_unchanged(kernel: Kernel, ran: KernelIdentity) -> bool:
    """Whether a user's own image is still the one that ran, if it did. Of other kernels the plan says all there is."""
    if kernel.image is None or ran == UNKNOWN or ran.name != kernel.name:
        return True
    return hashlib.sha256(kernel.image.read_bytes()).hexdigest() == ran.sha256


# ---------------------------------------------------------------- running


def run_cells(
    plans: Sequence[RunPlan],
    taken: Sequence[Finished | None],
    execute: Execute,
    progress: Progress,
    cancel: threading.Event,
    retry: bool,
) -> list[Finished | None]:
    """Everything that is not in `taken`; then, each alone, once more what could not be judged at its first attempt.

    Results in the order of `plans`; None where `cancel` came first.
    """
    outcomes = list(taken)
    missing = [number for number, outcome in enumerate(outcomes) if outcome is None]
    if missing:
        ran = execute([plans[number] for number in missing], {}, progress, cancel)
        for number, outcome in zip(missing, ran, strict=True):
            outcomes[number] = outcome
    for number, outcome in enumerate(outcomes):
        if outcome is not None and retry and is_due(outcome[0]) and not cancel.is_set():
            outcomes[number] = _again(plans[number], outcome, execute, progress, cancel) or outcome
    return outcomes


def _again(
    plan: RunPlan, before: Finished, execute: Execute, progress: Progress, cancel: threading.Event
) -> Finished | None:
    result, where = before
    because = reason(result)
    progress.say(plan.id, f"{NOTE}once more, alone, for it could not be judged: {because}")
    return execute([plan], {RETRY_OF: where.name, RETRY_BECAUSE: because}, progress, cancel)[0]


def is_due(result: RunResult) -> bool:
    """Whether a second attempt is called for: it could not be judged, and this was the first.

    What has ended two workers of a cluster has been run twice.
    """
    return result.verdict is Verdict.ERROR and not {RETRY_OF, ENDED_WORKERS} & result.environment.keys()


def left(outcomes: Sequence[Finished | None], retry: bool) -> int:
    """How many cells are not finished."""
    return sum(outcome is None or (retry and is_due(outcome[0])) for outcome in outcomes)
