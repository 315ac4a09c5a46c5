"""Text that came from a file stays text: in the guest's shell, and on this machine."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

import rig
from rig.guest import arming, dom0, makedumpfile
from rig.loads import LOADS
from rig.vm.deadline import Deadline
from rig.vm.shell import Shell

# Ends a quoted word, starts commands in every way that a shell knows, and is no option of echo's.
HOSTILE = """-n a='b' "c  d" $(touch pwned) `touch pwned`; touch pwned & > pwned \\n %s ${x:-y} * ~ # '"""


def arguments(shell_text: str, folder: Path) -> list[str]:
    """What `kexec` or `insmod` gets when that text is run by a shell: one argument a line."""
    shown = 'kexec() { printf \'%s\\n\' "$@"; }\ninsmod() { kexec "$@"; }\n'
    done = subprocess.run(["sh", "-euc", shown + shell_text], cwd=folder, capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return done.stdout.splitlines()


def load_function(script: str) -> str:
    return script[script.index("load() {") : script.index("echo @")].partition("\n(")[0]


class Asked:
    """A shell that notes what it is asked."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def run(self, command: str, deadline: Deadline) -> str:
        self.commands.append(command)
        return "1000"

    def send(self, command: str) -> None:
        self.commands.append(command)


@pytest.fixture
def asked() -> Asked:
    return Asked()


def as_shell(asked: Asked) -> Shell:
    return cast(Shell, cast(Any, asked))


SOON = Deadline.after(5, "nothing")


def test_a_crash_kernels_command_line_arrives_as_it_was(tmp_path: Path) -> None:
    script = arming.script(LOADS["kexec_load"], HOSTILE)
    assert f"--command-line={HOSTILE}" in arguments(load_function(script) + "\nload -c", tmp_path)
    # what a kexec that loads and enters in one command takes from there
    kept = next(line for line in script.splitlines() if line.endswith(">/tmp/rig-cmdline"))
    printed = subprocess.run(["sh", "-c", kept.removesuffix(">/tmp/rig-cmdline")], capture_output=True, text=True)
    assert printed.stdout == f"{HOSTILE}\n"


def test_a_word_of_the_loads_own_is_added_to_it(tmp_path: Path) -> None:
    script = arming.script(LOADS["replace"], HOSTILE)
    got = arguments(load_function(script) + "\nword=rig_image=first load -c", tmp_path)
    assert f"--command-line={HOSTILE} rig_image=first" in got


def test_the_command_line_of_a_hop_arrives_as_it_was(asked: Asked, tmp_path: Path) -> None:
    arming.hop(as_shell(asked), HOSTILE, SOON)
    assert f"--command-line={HOSTILE}" in arguments(asked.commands[0], tmp_path)


def test_dom0_gets_both_command_lines_as_they_were(tmp_path: Path) -> None:
    script = dom0.script(LOADS["plain"], HOSTILE, f"xen {HOSTILE}")
    got = arguments(load_function(script) + "\nload -c", tmp_path)
    assert f"--command-line=xen {HOSTILE}" in got
    assert f"--module=/rig/crash-kernel {HOSTILE}" in got


def test_a_modules_parameters_arrive_as_they_were(asked: Asked, tmp_path: Path) -> None:
    arming.load_control(as_shell(asked), "what=$(touch${IFS}pwned) x=';touch'", SOON)
    assert arguments(asked.commands[0], tmp_path) == ["/rig/control.ko", "what=$(touch${IFS}pwned)", "x=';touch'"]


def test_a_filters_options_arrive_as_they_were(tmp_path: Path) -> None:
    command = makedumpfile.command("-c -d 31;touch${IFS}pwned", "/proc/vmcore")
    got = arguments(command.replace(makedumpfile.PROGRAM, "kexec"), tmp_path)
    assert got == ["-F", "-c", "-d", "31;touch${IFS}pwned", "--message-level", "6", "/proc/vmcore"]


def test_no_shell_on_this_machine_is_given_text_that_was_put_together() -> None:
    """`sh -c` is there once, with a constant; shell=True, os.system() and os.popen() nowhere."""
    found = []
    for path in sorted(Path(rig.__file__).parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(r"""shell=|system|popen|getoutput|spawnl|['"]-c['"]""", text):
            continue  # which saves parsing it
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                found.append((path.name, "shell="))
            elif isinstance(node, ast.Attribute) and node.attr in ("system", "popen", "getoutput", "spawnl"):
                found.append((path.name, node.attr))
            elif isinstance(node, ast.Tuple | ast.List):
                words = [word.value for word in node.elts if isinstance(word, ast.Constant)]
                if "-c" in words and {"sh", "bash", "/bin/sh"}.intersection(words):
                    found.append((path.name, "sh -c"))
                    assert len(words) == len(node.elts)  # all of it is constant
    assert found == [("qemu.py", "sh -c")]
