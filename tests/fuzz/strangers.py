"""Evidence directories as strangers may send them, and what the commands that take one must not do with them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rig import cli
from rig.evidence.writer import to_json
from rig.history import FILE
from rig.judge import judge
from tests.forged_trace import machine, way
from tests.fuzz.harmless import require_harmless

Damage = Callable[[Path], object]
SECRET = "root:x:0:0:not to be seen"
OURS = {"results", "secret", "elsewhere", "site", "site.junit", "site.ktap", "site.markdown"}
ESCAPE = "\x1b]0;owned\x07\x9b31m\u202e"


def make(folder: Path) -> Path:
    """A sound run with its result, beside a file that is nobody's business."""
    evidence = machine(way()).write(folder / "results")
    (evidence.path / "result.json").write_bytes(to_json(judge(evidence)))
    (evidence.path / "report.html").write_text("a page")
    (folder / "secret").write_text(SECRET)
    return evidence.path


def commands(run: Path) -> list[list[str]]:
    site = str(run.parent.parent / "site")
    return [
        ["check", str(run)],
        ["check", str(run), "--json"],
        ["report", str(run)],
        ["report", str(run.parent)],
        ["report", str(run), "--html", site],
        ["report", str(run), *(word for f in ("junit", "ktap", "markdown") for word in (f"--{f}", f"{site}.{f}"))],
        ["compare", str(run), str(run)],
        ["rerun", str(run), "--results", str(run.parent)],
        ["history", "--results", str(run.parent)],
    ]


def own(path: Path) -> Path:
    """A file that no damage has been done to yet: never is written through a link, nor read what has no end.

    :raise OSError: some has
    """
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 20:
        raise OSError(f"{path} is damaged already")
    return path


def linked(name: str, target: str) -> Damage:
    def damage(run: Path) -> None:
        own(run / name).unlink()
        (run / name).symlink_to(target)

    return damage


def fifo(name: str) -> Damage:
    def damage(run: Path) -> None:
        own(run / name).unlink()
        os.mkfifo(run / name)

    return damage


def folder_elsewhere(run: Path) -> None:
    own(run / "memory" / "panic.pages.zst")
    shutil.move(run / "memory", run.parent.parent / "elsewhere")
    (run / "memory").symlink_to(run.parent.parent / "elsewhere")


def sparse(name: str) -> Damage:
    """10 GB declared, none there."""
    return lambda run: os.truncate(own(run / name), 10 << 30)


def written(name: str, blob: bytes) -> Damage:
    return lambda run: own(run / name).write_bytes(blob)


def declared(name: str) -> Damage:
    """A frame that says that it is of 10 GB (RFC 8878, 3.1.1.1: a content size of 8 bytes)."""
    return written(name, b"\x28\xb5\x2f\xfd\xe0" + (10 << 30).to_bytes(8, "little") + b"\1\0\0")


def told(name: str, change: Callable[[Any], object]) -> Damage:
    def damage(run: Path) -> None:
        document = json.loads(own(run / name).read_bytes())
        change(document)
        (run / name).write_text(json.dumps(document))

    return damage


def names_all(run: Path) -> None:
    """Every word in result.json that is free, steers the terminal."""

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list):
            return [change(item) for item in value]
        steers = isinstance(value, str) and value not in ("pass", "fail", "error", "skip", *names)
        return f"{value}{ESCAPE}" if steers else value

    document = json.loads(own(run / "result.json").read_bytes())
    names = [one["name"] for part in ("checks", "phases") for one in document[part]]
    (run / "result.json").write_text(json.dumps(change(document)))


def renamed(run: Path) -> None:
    run.rename(run.with_name(f"run{ESCAPE}"))


DAMAGE: dict[str, Damage] = {
    "result-is-a-link": linked("result.json", "../../secret"),
    "run-is-a-link": linked("run.json", "../../secret"),
    "console-is-dev-zero": linked("console.log", "/dev/zero"),
    "trace-is-a-loop": linked("trace.log.zst", "trace.log.zst"),
    "folder-is-a-link": folder_elsewhere,
    "run-is-a-fifo": fifo("run.json"),
    "result-is-a-fifo": fifo("result.json"),
    "console-is-a-fifo": fifo("console.log"),
    "registers-are-a-fifo": fifo("registers/panic.json"),
    "run-of-10-gb": sparse("run.json"),
    "console-of-10-gb": sparse("console.log"),
    "headers-of-10-gb": sparse("vmcore/headers.bin"),
    "hashes-of-10-gb": sparse("memory/panic.hashes.zst"),
    "bomb-in-pages": declared("memory/panic.pages.zst"),
    "bomb-of-hashes": declared("memory/panic.hashes.zst"),
    "bomb-of-symbols": declared("symbols.json.zst"),
    "bomb-of-a-trace": declared("trace.log.zst"),
    "deep": written("result.json", b"[" * 10**6),
    "not-utf-8": written("run.json", b'{"rig": "\xff\xfe"}'),
    "no-run": lambda run: (run / "run.json").unlink(),
    "no-registers": lambda run: shutil.rmtree(run / "registers"),
    "too-much-memory": told("run.json", lambda d: d["plan"]["guest"].update(memory=1 << 60)),
    "ram-without-end": told("run.json", lambda d: d.update(ram=[[0, 1 << 60, 0]])),
    "segment-without-end": told("run.json", lambda d: d["kimage"].update(segments=[[0, 1 << 60]])),
    "unknown-check": told("run.json", lambda d: d["plan"]["scenario"].update(checks=[f"none{ESCAPE}"])),
    "no-checks": told("run.json", lambda d: d["plan"]["scenario"].update(checks=[])),
    "traversal": told("run.json", lambda d: d["plan"]["scenario"].update(name="../../../tmp/owned")),
    "a-checkpoint-that-is-a-path": told("run.json", lambda d: d.update(captured=["../../secret"])),
    "a-number-of-1000-digits": told("result.json", lambda d: d["environment"].update(n=10**999)),
    "seconds-that-are-none": told("result.json", lambda d: d.update(phases=[{"name": "boot", "seconds": 1e308}] * 2)),
    "disagrees": told("result.json", lambda d: d.update(verdict="pass", surprise="", checks=[])),
    "words-that-steer": names_all,
    "a-name-that-steers": renamed,
    "history-is-a-link": lambda run: (run.parent / FILE).symlink_to("../secret"),
    "history-is-a-fifo": lambda run: os.mkfifo(run.parent / FILE),
    "pages-are-links": lambda run: (run.parent / "index.html").symlink_to("../secret"),
    "page-is-a-link": linked("report.html", "../../secret"),
}


def damaged(run: Path, kinds: Iterable[str]) -> Path:
    """The run's directory after all of these have been done to it, as far as each still can."""
    for kind in kinds:
        try:
            DAMAGE[kind](run)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # what it would damage is gone, or no JSON any more
        (run,) = (path for path in run.parent.iterdir() if path.is_dir() and not path.is_symlink())
    return run


def refuse(words: list[str], read: Callable[[], tuple[str, str]], folder: Path) -> None:
    """Run a command, and require that it ended as a command may: by its exit code, with a word on why, and with
    nothing outside the results read or written. read: what it printed, on stdout and stderr."""
    code = cli.main(words)
    out, err = read()
    require_harmless(out)
    require_harmless(err)
    assert code in (0, 1, 2, 3), words
    assert code in (0, 1) or "rig: " in err or "could not judge" in out or '"error"' in out, (words, out, err)
    assert "Traceback" not in err
    assert SECRET not in out + err
    assert (folder / "secret").read_text() == SECRET
    assert {path.name for path in folder.iterdir()} <= OURS
    for page in folder.rglob("*.html"):
        assert page.is_symlink() or SECRET not in page.read_text()
