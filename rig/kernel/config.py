"""Fragments of a kernel configuration: what is asked for and why, and what Kconfig made of it. Pure but for reading.

A line of a fragment is `CONFIG_NAME=VALUE  # reason`. VALUE is as in a .config, or n: that option must be off.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rig.errors import RequestError

_LINE = re.compile(r'(?P<name>CONFIG_\w+)=(?P<value>"[^"]*"|[^\s"#]+)\s+#\s*(?P<reason>\S.*)')

_DECLARATION = re.compile(r"^\s*(?:menu)?config\s+(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """value: as in a .config; `n` for off. fragment: the file that asks for it."""

    name: str
    value: str
    fragment: Path


def read_fragment(path: Path) -> list[Option]:
    """The options of one fragment.

    :raise RequestError: the file can't be read, or a line is none of a fragment's; names file and line
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} can't be read: {error}") from error
    return [_option(path, number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]


def _option(path: Path, number: int, line: str) -> Option:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise RequestError(
            f"{path}:{number}: not a line of a fragment: {line.strip()}",
            hint="CONFIG_NAME=VALUE  # reason; VALUE is y, n, a number or a quoted string, and there is a reason",
        )
    return Option(match["name"], match["value"], path)


def merge(fragments: Iterable[Iterable[Option]]) -> tuple[Option, ...]:
    """All options, in their order.

    :raise RequestError: two fragments ask for different values
    """
    merged: dict[str, Option] = {}
    for option in (option for fragment in fragments for option in fragment):
        first = merged.setdefault(option.name, option)
        if first.value != option.value:
            raise RequestError(
                f"{option.fragment}: {option.name}={option.value}, but {first.fragment} has {first.name}={first.value}",
                hint="take the option out of one of them",
            )
    return tuple(merged.values())


def to_config(options: Iterable[Option]) -> str:
    """As the file that `make allnoconfig` takes its values from (KCONFIG_ALLCONFIG, kernel's kconfig.rst)."""
    return "".join(
        f"# {option.name} is not set\n" if option.value == "n" else f"{option.name}={option.value}\n"
        for option in options
    )


def declared(source: Path) -> frozenset[str]:
    """All options, as CONFIG_NAME, that a kernel's source has for x86: what its Kconfig files declare."""
    found: set[str] = set()
    for path in source.rglob("Kconfig*"):
        top, *below = path.relative_to(source).parts
        if path.is_file() and (top != "arch" or below[0] in ("x86", "Kconfig")):
            found.update(_DECLARATION.findall(path.read_text(encoding="utf-8", errors="replace")))
    return frozenset(f"CONFIG_{name}" for name in found)


def unmet(options: Iterable[Option], config: Mapping[str, str], known: Collection[str]) -> list[str]:
    """What was asked for and isn't there, each as a line that names the option, its fragment and what it is instead.

    config: the finished configuration, as rig.kernel.image.parse_config reads it. Kconfig drops an option whose
    dependencies aren't met without a word. known: as `declared`. An option that the source hasn't got can't be off
    either: another one may have taken its place.
    """
    return [
        f"{option.name}={option.value} ({option.fragment.name}) is "
        + (config.get(option.name, "n") if option.name in known else "no option of this source")
        for option in options
        if option.name not in known or config.get(option.name, "n") != option.value
    ]
