"""Shell completion: a script made by shtab from the command line's own parser.

What a word may be is told by its metavar, so that a new option is completed without a word here. Names are asked of
`rig list WHAT --names` when they are wanted: they may be of the user's own catalogue.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import shtab

SHELLS = ("bash", "zsh")
BASH_RIGW = "complete -o bashdefault -F _shtab_rig rigw"  # the same words; bash goes by the last part of ./rigw
# metavar -> lists of `rig list` that hold its names; whether it may be a file as well
NAMES = {
    "SCENARIO": (("scenarios",), False),
    "GUEST": (("guests",), False),
    "NAME": (("guests",), False),  # of --guest
    "KERNEL": (("kernels",), False),
    "NAME|BZIMAGE": (("kernels",), True),
    "NAME|BZIMAGE|VMLINUX": (("kernels",), True),
    "PATTERN": (("selections", "scenarios"), False),
}
PATHS: dict[str, Mapping[str, Any]] = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "RESULT_DIR": shtab.DIRECTORY}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What the shell is to read, for the command that it completes, rig. shell: one of SHELLS."""
    for action in _actions(parser):
        how = _complete(action.metavar)
        if how and not action.choices:
            action.complete = how  # type: ignore[attr-defined]  # where shtab looks
    preamble = {"bash": "\n".join(map(_bash, NAMES)), "zsh": "\n".join(map(_zsh, NAMES))}
    text: str = shtab.complete(parser, shell, preamble=preamble[shell])
    return f"{text}\n{BASH_RIGW}" if shell == "bash" else text


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)


def _complete(metavar: str | tuple[str, ...] | None) -> Mapping[str, Any] | None:
    if not isinstance(metavar, str):
        return None
    return dict.fromkeys(SHELLS, _function(metavar)) if metavar in NAMES else PATHS.get(metavar)


def _function(metavar: str) -> str:
    return f"_rig_{metavar.lower().replace('|', '_or_')}"


def _bash(metavar: str) -> str:
    """A function that prints what the word $1 can become. The command as it was typed is asked: rig, ./rigw."""
    lists, file = NAMES[metavar]
    ask = "; ".join(f'"${{COMP_WORDS[0]}}" list {what} --names 2>/dev/null' for what in lists)
    also = '; compgen -f -- "$1"' if file else ""
    return f'{_function(metavar)}() {{ compgen -W "$({ask})" -- "$1"{also}; }}'


def _zsh(metavar: str) -> str:
    lists, file = NAMES[metavar]
    ask = "; ".join(f"rig list {what} --names 2>/dev/null" for what in lists)
    also = "; _files" if file else ""
    return f'{_function(metavar)}() {{ compadd -- ${{(f)"$({ask})"}}{also} }}'
