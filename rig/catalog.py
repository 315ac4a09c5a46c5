"""The catalogue: TOML files -> Guest, Kernel, Scenario, Selection. Read and validated once, here, at the edge.

A catalogue is a directory with guests/, kernels/, scenarios/ and scenarios/selections/, each holding NAME.toml; the
file's name is the entry's name, its keys are the fields of the class in rig/model.py. kernels/controls/NAME/ are the
modules that a scenario's `sabotage` may name; kernels/config/ and kernels/controls/ hold the fragments and patches that
a kernel may name. Those are looked for in the catalogue whose file names them, then in the rig's own.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import fnmatch
import functools
import itertools
import os
import re
import tomllib
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rig.errors import CatalogueError, RequestError
from rig.model import (
    Cells,
    Dump,
    Guest,
    Kernel,
    LoadKind,
    Scenario,
    Selection,
    Until,
)
from rig.rules import entries

GUESTS, KERNELS, SCENARIOS = "guests", "kernels", "scenarios"
SELECTIONS = "scenarios/selections"
LIKE = "like"  # a guest's key
NOT_KEYS = ("name", "home")  # what a file does not say, but where it is
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # ids are SCENARIO@GUEST/KERNEL: neither @ nor / in a name

Entry = Guest | Kernel | Scenario | Selection
TYPES = {kind: typing.get_type_hints(kind) for kind in typing.get_args(Entry)}  # of their fields; slow to make
E = TypeVar("E", Guest, Kernel, Scenario, Selection)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Every entry by its name, sorted. `files`: where each was read, by (directory, name)."""

    guests: Mapping[str, Guest]
    kernels: Mapping[str, Kernel]
    scenarios: Mapping[str, Scenario]
    selections: Mapping[str, Selection]
    files: Mapping[tuple[str, str], Path]


@dataclasses.dataclass(frozen=True)
class Registries:
    """The names that a scenario may use and that are code, not TOML."""

    checks: Mapping[str, Collection[tuple[Dump, LoadKind]]]  # with the dumps and images that each can be judged with
    triggers: Collection[str]
    loads: Mapping[str, LoadKind]
    injections: Collection[str]  # sabotage without a module: the rig does it through the debugger
    own_task: Collection[str] = ()  # checks of the task that holds the pattern: it must be the one that dies
    strangers: Collection[str] = ()  # triggers with which it is not
    later: Collection[str] = ()  # checks of what comes after the hand-over
    # what is entered, by the name of the trigger: without a panic an image that was loaded for that
    enters: Mapping[str, LoadKind] = dataclasses.field(default_factory=dict)


def registries() -> Registries:
    """The rig's own checks, triggers and injections."""
    from rig.checks import REGISTRY
    from rig.injection import INJECTIONS
    from rig.loads import LOADS
    from rig.triggers import TRIGGERS

    return Registries(
        checks={name: tuple(itertools.product(check.dumps, check.kinds)) for name, check in REGISTRY.items()},
        triggers=tuple(TRIGGERS),
        enters={name: trigger.enters for name, trigger in TRIGGERS.items()},
        loads={name: load.kind for name, load in LOADS.items()},
        injections=tuple(INJECTIONS),
        own_task=tuple(name for name, check in REGISTRY.items() if check.own_task),
        strangers=tuple(name for name, trigger in TRIGGERS.items() if not trigger.own_task),
        later=tuple(name for name, check in REGISTRY.items() if not check.by_handover),
    )


def roots() -> tuple[Path, ...]:
    """The directory of the rig's own catalogue: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "data"
    return (installed if (installed / SCENARIOS).is_dir() else package.parent,)


def extra_roots(options: Iterable[Path], environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """The user's own catalogue directories: RIG_CATALOGUE (separated like PATH), then --catalogue."""
    named = [Path(part) for part in environ.get("RIG_CATALOGUE", "").split(os.pathsep) if part]
    return tuple(dict.fromkeys(path.resolve() for path in (*named, *options)))


def load(extra: Sequence[Path] = (), *, known: Registries | None = None) -> Catalogue:
    """The rig's own catalogue and the directories in `extra`, validated, cross references too.

    :raise RequestError: a directory in `extra` is not a catalogue
    :raise CatalogueError: a file does not say what it must; names file and key
    """
    for path in extra:
        if not any((path / part).is_dir() for part in (GUESTS, KERNELS, SCENARIOS)):
            raise RequestError(
                f"{path} is not a catalogue directory",
                hint="it must hold at least one of guests/, kernels/, scenarios/, each with NAME.toml files",
            )
    return read((*roots(), *extra), registries() if known is None else known)


def read(directories: Sequence[Path], known: Registries) -> Catalogue:
    """The catalogue made of these directories and nothing else."""
    files: dict[tuple[str, str], Path] = {}
    for part in (GUESTS, KERNELS, SCENARIOS, SELECTIONS):
        for directory in directories:
            for path in _files(directory / part):
                first = files.setdefault((part, path.stem), path)
                if first != path:
                    raise CatalogueError(
                        f"{path}: {part} has a {path.stem!r} already: {first}", hint="rename one of the files"
                    )
    catalogue = Catalogue(
        guests=_table(Guest, GUESTS, files),
        kernels=_table(Kernel, KERNELS, files),
        scenarios=_table(Scenario, SCENARIOS, files),
        selections=_table(Selection, SELECTIONS, files),
        files=files,
    )
    _check_references(catalogue, known)
    complete = {name: _complete(scenario, known) for name, scenario in catalogue.scenarios.items()}
    return dataclasses.replace(catalogue, scenarios=complete)


def _complete(scenario: Scenario, known: Registries) -> Scenario:
    """A scenario that names no checks has all that can be judged with its dump and its kind of image."""
    way = (scenario.dump, known.loads[scenario.load])
    out = set(known.own_task if scenario.trigger in known.strangers else ())
    out |= set(known.later if scenario.until is Until.HANDOVER else ())
    every = tuple(name for name, ways in known.checks.items() if way in ways and name not in out)
    return dataclasses.replace(scenario, checks=scenario.checks or every)


def control(scenario: Scenario) -> Path | None:
    """The directory with the sources of the scenario's control module; None when it has none."""
    return next((path for path in _controls(scenario.home) if path.name == scenario.control), None)


def build_file(relative: str, home: Path | None = None) -> Path:
    """A file that a kernel built from source names, by its path in kernels/: a fragment or a patch.

    home: the kernel's catalogue, where it is looked for before the rig's own.

    :raise RequestError: there is none; carries the nearest name and all of them
    """
    directory, _, name = relative.rpartition("/")
    pattern = f"{KERNELS}/{directory}/*{Path(name).suffix}"
    found = {path.name: path for root in reversed(_places(home)) for path in root.glob(pattern)}
    return find(found, name, f"file in kernels/{directory}")


def _controls(home: Path | None) -> list[Path]:
    return [path for root in _places(home) for path in sorted((root / KERNELS / "controls").glob("*/"))]


def _places(home: Path | None) -> tuple[Path, ...]:
    """Where what an entry of the catalogue `home` names is looked for, in this order."""
    return tuple(dict.fromkeys(filter(None, (home, *roots()))))


def find(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name].

    :raise RequestError: there is none; carries the nearest name and all of them
    """
    if name in table:
        return table[name]
    raise RequestError(f"unknown {what} {name!r}{nearest(name, table)}", hint=one_of(table))


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'X'?`, or nothing when no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(names: Iterable[str]) -> str:
    return f"valid: {', '.join(sorted(names)) or '(there are none)'}"


# ---------------------------------------------------------------- one file


def _table(kind: type[E], part: str, files: Mapping[tuple[str, str], Path]) -> dict[str, E]:
    paths = sorted((name, path) for (owner, name), path in files.items() if owner == part)
    return {name: entry(kind, path) for name, path in paths}


def entry(kind: type[E], path: Path) -> E:
    """The entry that one file describes."""
    if not NAME.fullmatch(path.stem):
        raise CatalogueError(
            f"{path}: the file's name is the entry's name, and {path.stem!r} can't be one",
            hint="letters, digits, dot, underscore and minus; a letter or digit first",
        )
    table = _with_likeness(kind, path, _toml(path))
    fields: Mapping[str, dataclasses.Field[Any]] = _keys(kind)
    _known_keys(path, table, [*fields, *([LIKE] if kind is Guest else [])])
    for key, field in fields.items():
        if key not in table and field.default is dataclasses.MISSING:
            raise CatalogueError(f"{path}: missing key {key!r}", hint=f"a {kind.__name__} needs: {_required(kind)}")
    for key, value in table.items():
        if value == []:
            raise CatalogueError(f"{path}: {key}: the list is empty", hint=f"name one, or leave {key!r} out")
    types = TYPES[kind]
    values = {key: _value(path, key, value, types[key]) for key, value in table.items()}
    if "home" in types:
        values["home"] = path.parent.parent
    entry = kind(name=path.stem, **values)
    for key, complaint in entries.complaints(entry):
        raise CatalogueError(f"{path}: {key}: {complaint}")
    return entry


def _files(directory: Path) -> list[Path]:
    """Sorted by their names: comparing paths takes longer than reading them."""
    return sorted(directory.glob("*.toml"), key=lambda path: path.name)


def _known_keys(path: Path, table: Iterable[str], known: Collection[str]) -> None:
    for key in table:
        if key not in known:
            raise CatalogueError(f"{path}: unknown key {key!r}{nearest(key, known)}", hint=one_of(known))


def _with_likeness(kind: type[Entry], path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """A guest that is `like` another has that one's keys, but for those it gives itself.

    The other is a file of the same directory, and like none itself.
    """
    if kind is not Guest or LIKE not in table:
        return table
    name = str(table[LIKE])
    other = path.with_name(f"{name}.toml") if NAME.fullmatch(name) else path
    if other == path or not other.is_file():
        others = [found.stem for found in _files(path.parent) if found != path]
        raise CatalogueError(f"{path}: {LIKE}: unknown name {name!r}{nearest(name, others)}", hint=one_of(others))
    base = _toml(other)
    if LIKE in base:
        raise CatalogueError(f"{path}: {LIKE}: {name} is itself like {base[LIKE]}", hint=f"be like {base[LIKE]}")
    return base | {key: value for key, value in table.items() if key != LIKE}


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise CatalogueError(f"{path}: {error.strerror}") from error


def _value(path: Path, key: str, value: object, wanted: Any) -> Any:
    """One value, converted without any coercion; paths are relative to the file they stand in."""
    if wanted == tuple[Cells, ...] and isinstance(value, list):
        for cells in value:
            _known_keys(path, cells if isinstance(cells, dict) else {}, [f.name for f in dataclasses.fields(Cells)])
    try:
        return msgspec.convert(
            value, wanted, strict=True, dec_hook=lambda _type, text: path.parent / Path(str(text)).expanduser()
        )
    except msgspec.ValidationError as error:
        if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
            raise CatalogueError(
                f"{path}: {key}: {value!r} is none of the valid values{nearest(str(value), list(wanted))}",
                hint=one_of(wanted),
            ) from error
        raise CatalogueError(f"{path}: {key}: {error}") from error


def _keys(kind: type[Entry]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind) if field.name not in NOT_KEYS}


def _required(kind: type[Entry]) -> str:
    return ", ".join(key for key, field in _keys(kind).items() if field.default is dataclasses.MISSING)


# ---------------------------------------------------------------- what one file says of another


def _check_references(catalogue: Catalogue, known: Registries) -> None:
    """Every name that one file says of another, or of the code, exists."""
    references: list[tuple[str, str, str, Iterable[str], Collection[str]]] = [
        (GUESTS, guest.name, "kernel", [guest.kernel], catalogue.kernels) for guest in catalogue.guests.values()
    ]
    controls = functools.cache(_controls)
    for scenario in catalogue.scenarios.values():
        sabotages = [*known.injections, *(path.name for path in controls(scenario.home))]
        references += [
            (SCENARIOS, scenario.name, "trigger", [scenario.trigger], known.triggers),
            (SCENARIOS, scenario.name, "load", [scenario.load], known.loads),
            (SCENARIOS, scenario.name, "checks", scenario.checks, known.checks),
            (SCENARIOS, scenario.name, "expect_failed", scenario.expect_failed, scenario.checks or known.checks),
            (SCENARIOS, scenario.name, "guests", scenario.guests, catalogue.guests),
            (SCENARIOS, scenario.name, "into", filter(None, [scenario.into]), catalogue.guests),
            (SCENARIOS, scenario.name, "kernel", filter(None, [scenario.kernel]), catalogue.kernels),
            (SCENARIOS, scenario.name, "crash_kernel", filter(None, [scenario.crash_kernel]), catalogue.kernels),
            (SCENARIOS, scenario.name, "sabotage", filter(None, [scenario.control]), sabotages),
        ]
    for selection in catalogue.selections.values():
        for cells in selection.cells:
            for key, patterns, names in (
                ("scenarios", cells.scenarios, list(catalogue.scenarios)),
                ("guests", cells.guests, list(catalogue.guests)),
                ("kernels", cells.kernels, list(catalogue.kernels)),
            ):
                unmatched = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
                references.append((SELECTIONS, selection.name, f"cells.{key}", unmatched, names))
    for part, owner, key, given, known_names in references:
        for name in given:
            if name not in known_names:
                raise CatalogueError(
                    f"{catalogue.files[part, owner]}: {key}: unknown name {name!r}{nearest(name, known_names)}",
                    hint=one_of(known_names),
                )
    for scenario in catalogue.scenarios.values():
        for name in set(scenario.checks) & set(known.own_task) if scenario.trigger in known.strangers else ():
            raise CatalogueError(
                f"{catalogue.files[SCENARIOS, scenario.name]}: trigger: {name} can't be judged with {scenario.trigger}",
                hint="it looks for the task that panics: " + one_of(set(known.triggers) - set(known.strangers)),
            )
        # with no image at all the trigger is one of those that would enter a crash kernel
        entered = LoadKind.CRASH if (loaded := known.loads[scenario.load]) is LoadKind.NONE else loaded
        fitting = [name for name in known.triggers if known.enters.get(name, LoadKind.CRASH) is entered]
        if scenario.trigger not in fitting:
            raise CatalogueError(
                f"{catalogue.files[SCENARIOS, scenario.name]}: trigger: {scenario.trigger!r} does not enter an image "
                f"loaded by {scenario.load!r}",
                hint=one_of(fitting),
            )
        if scenario.until is Until.HANDOVER:
            _require_by_handover(catalogue, scenario, known)
        for name in scenario.checks:
            dumps, kinds = (set(values) for values in zip(*known.checks[name], strict=True))
            for key, value, valid in (("dump", scenario.dump, dumps), ("load", known.loads[scenario.load], kinds)):
                if value not in valid:
                    raise CatalogueError(
                        f"{catalogue.files[SCENARIOS, scenario.name]}: {key}: {name} can't be judged with {value!s}",
                        hint=one_of(
                            valid if key == "dump" else (n for n, kind in known.loads.items() if kind in valid)
                        ),
                    )


def _require_by_handover(catalogue: Catalogue, scenario: Scenario, known: Registries) -> None:
    """A scenario that ends there enters a kernel, and names nothing to be judged of what comes later."""
    where = catalogue.files[SCENARIOS, scenario.name]
    if known.loads[scenario.load] not in (LoadKind.CRASH, LoadKind.PLAIN):
        fitting = [name for name, kind in known.loads.items() if kind in (LoadKind.CRASH, LoadKind.PLAIN)]
        raise CatalogueError(
            f"{where}: until: a run with load = {scenario.load!r} does not end at a hand-over", hint=one_of(fitting)
        )
    for key, names in (("checks", scenario.checks), ("expect_failed", scenario.expect_failed)):
        for name in names:
            if name in known.later:
                raise CatalogueError(
                    f"{where}: {key}: {name} is judged by what comes after the hand-over, where the scenario ends",
                    hint=f"leave out {name}, or until",
                )
