"""Triggers are shell lines: what they say, and what a shell makes of them up to the panic itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from rig.catalog import roots
from rig.model import LoadKind
from rig.triggers import MODULE, READY, SPIN, TRIGGERS, WAIT, ConsoleInput, trigger_line

TOKEN = "0123456789abcdef"


def test_a_trigger_is_pulled_in_the_guest_or_from_outside() -> None:
    assert [name for name, trigger in TRIGGERS.items() if not trigger.command and trigger.act is None] == []
    assert TRIGGERS["xen-key-c"].act == ConsoleInput("\x01\x01\x01C")


@pytest.mark.parametrize(
    "name", [name for name, trigger in TRIGGERS.items() if trigger.command and trigger.enters is LoadKind.CRASH]
)
def test_a_trigger_fits_into_the_shells_quotes_and_keeps_the_token_apart(name: str) -> None:
    line = trigger_line(TRIGGERS[name], TOKEN)
    assert line.count("'") == 2
    assert TOKEN not in line


@pytest.mark.skipif(not shutil.which("taskset"), reason="needs taskset")
def test_the_process_that_pulls_the_trigger_is_on_the_last_cpu() -> None:
    """The shell process itself, not a child of it: its pgd is the one that counts."""
    harmless = TRIGGERS["sysrq-c-last-cpu"].before + "; grep Cpus_allowed_list /proc/$$/status"
    last = max(os.sched_getaffinity(0))
    with open("/sys/devices/system/cpu/online") as online:
        if int(re.split("[-,]", online.read().strip())[-1]) != last:
            pytest.skip("the machine's last CPU is not for this process")
    done = subprocess.run(["sh", "-c", harmless], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"Cpus_allowed_list:\t{last}"


def test_a_trigger_that_is_a_module_asks_for_kinds_that_the_module_has() -> None:
    source = (roots()[0] / "kernels" / "triggers" / MODULE / f"{MODULE}.c").read_text()
    kinds = set(re.findall(r'^\t\{ "([a-z-]+)",', source, re.MULTILINE))
    asked = {trigger.module for trigger in TRIGGERS.values() if trigger.module}
    assert asked == kinds


def test_a_process_that_waits_says_so() -> None:
    assert READY in subprocess.run(["sh", "-c", WAIT.replace(SPIN, ":")], capture_output=True, check=True).stdout
    for trigger in TRIGGERS.values():
        assert (WAIT in trigger.command) == (trigger.act is not None and bool(trigger.command))


@pytest.mark.parametrize("name", [name for name, trigger in TRIGGERS.items() if trigger.enters is LoadKind.CRASH])
def test_nothing_forks_between_the_pattern_and_the_panic(name: str) -> None:
    """After a fork the pattern's pages are read-only until written, and not taken for the task's own data."""
    builtins = {"echo", "printf", "while", ":", "do", "done", *re.findall(r"\bp=\S+", TRIGGERS[name].command)}
    words = {word for part in re.split(r"[;&|]+", TRIGGERS[name].command) for word in part.split()[:1]}
    assert words <= builtins
