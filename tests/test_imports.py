"""What commands must not wait for: libraries, and rooms, that they do not use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import rig

RIG = Path(rig.__file__).parent
# Each takes tens of milliseconds, some hundreds.
HEAVY = {
    *("numpy", "capstone", "elftools", "zstandard"),
    *("paramiko", "cryptography", "jinja2", "rich", "asyncio", "qemu.qmp", "sqlite3"),
    *("rig.evidence.reader", "rig.evidence.writer", "rig.conductor", "rig.report.html"),
}
# What must be there when QEMU is launched, and nothing of what waits for the guest: rig/warmup.py.
AFTER_LAUNCH = HEAVY - {"cryptography", "rig.evidence.reader", "rig.evidence.writer", "rig.conductor"}
COMMANDS = ("--help", "run --help", "list scenarios", "list checks", "run nosuch", "matrix --plan", "completion bash")
SCRIPT = """
import contextlib, io, sys
from rig.cli import main
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
         contextlib.suppress(SystemExit):
        main(words.split())
    print(*sys.modules)
import rig.conductor
print(*sys.modules)
"""


def test_nothing_heavy_is_imported_by_commands_that_do_not_use_it_nor_before_a_guest_boots() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *COMMANDS], capture_output=True, text=True, timeout=60, check=True
    )
    *after, conductor = (set(line.split()) for line in done.stdout.splitlines())
    assert {words: loaded & HEAVY for words, loaded in zip(COMMANDS, after, strict=True)} == {
        words: set() for words in COMMANDS
    }
    assert "rig.vm.qemu" in conductor
    assert conductor & AFTER_LAUNCH == set()


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Two threads that enter a circle at different places get modules that are not there yet: see rig/warmup.py."""
    files = {".".join(file.relative_to(RIG.parent).with_suffix("").parts): file for file in RIG.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for name, file in files.items()}
    graph = {
        name: {other for other in imported(ast.parse(file.read_text()).body) & set(modules) if inside(other, name)}
        for name, file in modules.items()
    }
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert order.index("rig.model") < order.index("rig.evidence.reader") < order.index("rig.conductor")


def imported(body: Sequence[ast.stmt]) -> set[str]:
    """What is imported with a module, and not later by its functions. `a.b` of `from a import b` as well as `a`."""
    found = set[str]()
    for statement in body:
        match statement:
            case ast.Import(names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(str(module), names):
                found |= {module, *(f"{module}.{alias.name}" for alias in names)}
            case ast.If(ast.Name("TYPE_CHECKING"), _, orelse):
                found |= imported(orelse)
            case ast.If(_, then, orelse):
                found |= imported(then) | imported(orelse)
            case ast.Try(tried) | ast.With(_, tried):
                found |= imported(tried)
    return found


def inside(other: str, name: str) -> bool:
    """Whether `other` is neither `name` nor a package around it, which is there already."""
    return not f"{name}.".startswith(f"{other}.")
