"""What strangers may hand the rig, but for binary formats: each target takes bytes, and fails where the rig raises
anything else than one of its own errors, or what it prints could steer a terminal.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import socket
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rig import catalog, history, shard, trace
from rig.checks import REGISTRY
from rig.commands.common import harmless_json
from rig.errors import CatalogueError, EvidenceError, ProtocolError, RigError
from rig.evidence.reader import Evidence, from_json
from rig.evidence.writer import to_json
from rig.handover import HandOver
from rig.judge import judge
from rig.model import Guest, Kernel, RunResult, Scenario, Selection
from rig.report.compare import compare
from rig.report.compare_text import one_text
from rig.report.html import render_run
from rig.report.html.compare import render_comparisons
from rig.report.html.history import render_history
from rig.report.html.matrix import render_matrix
from rig.report.junit import junit
from rig.report.ktap import ktap
from rig.report.listing import hand_over_listing
from rig.report.markdown import markdown
from rig.report.nights import lines as night_lines
from rig.report.text import verdict_lines
from rig.report.tracediff import compare_ways, way
from rig.report.wording import printable, printable_lines
from rig.vm import gdbstub, registers
from rig.vm.console import tail
from rig.vm.deadline import Deadline, Ending, Watch
from rig.vm.qmp import Qmp
from rig.vm.shell import parse_hello
from tests import forged_trace
from tests.checks.forged_handover import Handover
from tests.forge import Machine
from tests.fuzz.edits import edited
from tests.fuzz.harmless import own_errors, require_harmless, require_inert
from tests.fuzz.strangers import DAMAGE, commands, damaged, make, refuse
from tests.report.kinds import ALL, NASTY

SEEDS = "RIG_FUZZ_RUNS"  # evidence directories of real runs to damage, too, separated like PATH
_KINDS = [kind for kind in ALL if kind is not NASTY]  # that one holds what no JSON can
_CELL = "panic@i386/debian-6.1"


# ---------------------------------------------------------------- an evidence directory in memory


class Held(Evidence):
    """Evidence whose files are in memory."""

    def __init__(self, files: Mapping[str, bytes], **changed: bytes) -> None:
        super().__init__(Path("held"))
        self._files = {**files, **changed}

    def _read(self, name: str, most: int = 1 << 30) -> bytes:
        if name not in self._files:
            raise EvidenceError(f"{name} is missing")
        return self._files[name]

    def _has(self, name: str) -> bool:
        return name in self._files

    def files(self) -> list[tuple[str, int]]:
        return [(name, len(blob)) for name, blob in sorted(self._files.items())]


def _held(directory: Path) -> dict[str, bytes]:
    kept = (path for path in directory.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20)
    return {str(path.relative_to(directory)): path.read_bytes() for path in kept}


def _written(machine: Machine, *checks: str) -> dict[str, bytes]:
    """A forged machine's evidence, to be judged by all checks, with a result."""
    machine.expect(checks=checks or tuple(REGISTRY))
    with tempfile.TemporaryDirectory() as folder:
        evidence = machine.write(Path(folder))
        files = _held(evidence.path)
    return {**files, "result.json": to_json(judge(Held(files)))}


@functools.cache
def bases() -> tuple[dict[str, bytes], ...]:
    """Sound evidence to begin with: forged, and real runs that SEEDS names."""
    forged = [Machine(), forged_trace.machine(forged_trace.way()), Handover().machine()]
    real = [Path(path) for path in os.environ.get(SEEDS, "").split(os.pathsep) if path]
    return (*map(_written, forged), *map(_held, real))


def _base(data: bytes) -> tuple[dict[str, bytes], bytes]:
    """One of the bases, by the first byte; and the rest."""
    known = bases()
    return known[(data[0] if data else 0) % len(known)], data[1:]


def _show(result: RunResult, evidence: Evidence) -> None:
    """Everything that a run's directory is made into."""
    with own_errors(EvidenceError):
        listing = hand_over_listing(evidence)
        for line in listing.lines if listing else ():
            require_harmless(line)
        require_inert(render_run(result, evidence, listing))
    _publish(result)


def _publish(result: RunResult) -> None:
    """Everything that a result alone is made into."""
    require_harmless("\n".join(verdict_lines(result, Path("held"))))
    require_harmless(junit([(result, Path("held"))]).decode())
    require_harmless(ktap([result]))
    require_harmless(markdown([result]))
    require_harmless(harmless_json(to_json(result).decode()))
    record = history.record_of(result, "held")
    assert history.key_of(result)
    require_harmless("\n".join(night_lines([record])))
    require_inert(render_matrix([record], lambda _: "", []))
    require_inert(render_history([record, record], lambda _: ""))
    other = _KINDS[0]
    for pair in ((result, other), (other, result)):
        compared = compare(*pair, None, "no way")
        require_harmless(one_text(compared).plain)
        require_inert(render_comparisons([compared], ([], [])))


def _judged(files: Mapping[str, bytes], page: bool = False) -> None:
    """page: with everything that is made of it, which takes longer."""
    evidence = Held(files)
    with own_errors(EvidenceError):
        result = judge(evidence)
        require_harmless("\n".join(verdict_lines(result, Path("held"))))
        require_harmless(harmless_json(to_json(result).decode()))
        if page:
            _show(result, evidence)


def _is_json(name: str, page: bool = False) -> Callable[[bytes], None]:
    """A target: that file of the evidence edited, everything judged and shown."""

    def run(data: bytes) -> None:
        base, edits = _base(data)
        if name in base:
            _judged({**base, name: json.dumps(edited(json.loads(base[name]), edits)).encode()}, page)

    return run


fuzz_run_edits = _is_json("run.json")
fuzz_run_page = _is_json("run.json", page=True)
fuzz_panic_registers = _is_json("registers/panic.json")
fuzz_handover_registers = _is_json("registers/handover.json")


def seeds_run_edits() -> list[bytes]:
    return [bytes([base, where % 256, where // 256, 7, 0]) for base in range(3) for where in (40, 240)]


seeds_run_page = seeds_panic_registers = seeds_handover_registers = seeds_run_edits


def fuzz_result_edits(data: bytes) -> None:
    """result.json, edited, beside sound evidence: what disagrees with it is shown all the same."""
    base, edits = _base(data)
    blob = json.dumps(edited(json.loads(base["result.json"]), edits)).encode()
    evidence = Held({**base, "result.json": blob})
    with own_errors(EvidenceError):
        _show(evidence.result, evidence)


def seeds_result_edits() -> list[bytes]:
    return seeds_run_edits()


def fuzz_kinds_edits(data: bytes) -> None:
    """The same of results of every kind, in all that needs no evidence."""
    kinds = _KINDS
    blob = to_json(kinds[(data[0] if data else 0) % len(kinds)])
    evidence = Held({"result.json": json.dumps(edited(json.loads(blob), data[1:])).encode()})
    with own_errors(EvidenceError):
        _publish(evidence.result)


def seeds_kinds_edits() -> list[bytes]:
    return [bytes([kind, 9, 0, 7, 0]) for kind in range(0, len(_KINDS), 4)]


def fuzz_json(data: bytes) -> None:
    """Files of JSON that need not be any."""
    for name in ("run.json", "result.json", "registers/panic.json"):
        evidence = Held({name: data})
        with own_errors(EvidenceError):
            assert evidence.facts
        with own_errors(EvidenceError):
            assert evidence.result
        with own_errors(EvidenceError):
            evidence.cpus("panic")


def seeds_json() -> list[bytes]:
    return [base[name] for base in bases()[:1] for name in ("run.json", "result.json", "registers/panic.json")]


# ---------------------------------------------------------------- recordings and register dumps


def fuzz_trace(data: bytes) -> None:
    """The recording of a hand-over, and all that is derived from it alone."""
    text = data.decode("ascii", errors="replace")
    trace.addresses(text)
    trace.code_of(text)
    for start in (None, forged_trace.KERNEL):
        with own_errors(EvidenceError):
            found = trace.parse(text, 0, start)
            for change in trace.changes(found, None):
                assert change.before != change.after


def seeds_trace() -> list[bytes]:
    did = forged_trace.way()
    event = forged_trace.event(14, forged_trace.at(forged_trace.KERNEL))
    return [
        forged_trace.machine(did[:3], {1: event}).trace.encode(),
        Handover().machine().trace.encode()[:6000],
        f"{trace.gap('copied')}{forged_trace.block(did[0])}".encode(),
    ]


def fuzz_recorded(data: bytes) -> None:
    """The recording as evidence beside memory, judged and shown."""
    base = bases()[1 + (data[0] if data else 0) % 2]
    import zstandard

    _judged({**base, "trace.log.zst": zstandard.compress(data[1:])})


def seeds_recorded() -> list[bytes]:
    return [
        b"\0" + forged_trace.machine(forged_trace.way()).trace.encode(),
        b"\1" + Handover().machine().trace.encode(),
    ]


def fuzz_ways(data: bytes) -> None:
    """Two hand-overs held against each other, one of them damaged."""
    import zstandard

    base = bases()[1]
    evidence = Held({**base, "trace.log.zst": zstandard.compress(data)})
    with own_errors(EvidenceError):
        compare_ways(way(HandOver(Held(base))), way(HandOver(evidence)))


def seeds_ways() -> list[bytes]:
    return [seeds_recorded()[0][1:]]


def fuzz_registers(data: bytes) -> None:
    """`info registers -a`."""
    with own_errors(ProtocolError):
        for state in registers.parse(data.decode("utf-8", errors="replace")):
            assert all(0 <= value < 1 << 64 for value in state.general.values())


def seeds_registers() -> list[bytes]:
    states = (forged_trace.at(forged_trace.KERNEL), Handover().machine().cpus["panic"][0])
    return [f"\nCPU#{n}\n{forged_trace.dump(state)}".encode() for n, state in enumerate(states)]


# ---------------------------------------------------------------- what a live guest and QEMU say


def fuzz_gdb_packets(data: bytes) -> None:
    """A stream of RSP packets, until something in it is none."""
    rest, left = data, None
    with own_errors(ProtocolError):
        while rest and rest != left:
            left = rest
            packet, rest = gdbstub.take_packet(left)
            assert len(rest) <= len(left)
            if packet is None:
                break


def fuzz_gdb_replies(data: bytes) -> None:
    """The payload of a packet, framed and taken out again; as a stop."""
    packet, rest = gdbstub.take_packet(gdbstub.frame(re.sub(rb"[#$}]", b"", data)) + b"$next")
    assert packet == re.sub(rb"[#$}]", b"", data)
    assert rest == b"$next"
    with own_errors(ProtocolError):
        text = packet.decode("latin-1")
        assert (gdbstub.watched_address(text) or 0) < 1 << 64
        signal, cpu = gdbstub.parse_stop(text)
        assert 0 <= signal < 256
        assert cpu >= 0


_REPLIES = (b"T05thread:02;", b"T05watch:ffff8000;thread:p01.02;", b"OK", b"E22", b"", b"ab}\x03cd", b"mxxx")


def seeds_gdb_packets() -> list[bytes]:
    return [b"+" + gdbstub.frame(reply) + gdbstub.frame(b"OK") for reply in _REPLIES]


def seeds_gdb_replies() -> list[bytes]:
    return list(_REPLIES)


def _ended() -> Watch:
    """Of a guest that has ended: no wait goes on for long."""
    watch = Watch()
    watch.end(Ending("qemu-gone", "QEMU is gone"))
    return watch


def fuzz_gdb_session(data: bytes) -> None:
    """What a gdbstub answers, a line a packet, before it closes the connection, to all that the rig asks it."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"".join(gdbstub.frame(re.sub(rb"[#$}]", b"", line)) for line in data[:4096].split(b"\n")))
        theirs.shutdown(socket.SHUT_WR)
        stub = gdbstub.GdbStub(ours, _ended())
        asks: tuple[Callable[[], object], ...] = (
            lambda: stub.set_breakpoint(0x1000),
            stub.step,
            lambda: stub.read_memory(0x1000, 16),
            lambda: stub.write_register("cr4", 1 << 63),
            lambda: stub.wait_stop(Deadline.after(1, "a stop")),
            stub.detach,
        )
        for ask in asks:
            with own_errors(RigError):
                ask()
        stub.close()


def seeds_gdb_session() -> list[bytes]:
    registers_ = b"00" * 608
    target = b'l<target><xi:include href="i386.xml"/></target>'
    described = b'l<feature><reg name="rax" bitsize="64"/><reg name="cr4" regnum="40"/></feature>'
    return [
        b"\n".join((b"OK", b"T05thread:01;", b"OK", registers_, b"00" * 16, target, described, b"OK", b"T05thread:01;"))
    ]


def fuzz_qmp_session(data: bytes) -> None:
    """What QEMU's monitor says before it closes the connection."""
    ours, theirs = socket.socketpair()
    with theirs, tempfile.TemporaryDirectory() as folder:
        theirs.sendall(data[:100_000])
        theirs.shutdown(socket.SHUT_WR)
        log = Path(folder) / "qmp.jsonl"
        with own_errors(RigError), Qmp(ours, log, _ended(), on_event=lambda *_: None, on_lost=lambda: None) as qmp:
            qmp.monitor("info registers", timeout=1)
        for line in log.read_text().splitlines():
            json.loads(line)


def seeds_qmp_session() -> list[bytes]:
    version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
    said: tuple[dict[str, Any], ...] = (
        {"QMP": {"version": version, "capabilities": []}},
        {"return": {}, "id": "__rig#00000"},
        {"event": "STOP", "data": {}, "timestamp": {"seconds": 1, "microseconds": 2}},
        {"return": "CPU#0", "id": "__rig#00001"},
    )
    return [b"".join(json.dumps(line).encode() + b"\n" for line in said)]


def fuzz_hello(data: bytes) -> None:
    with own_errors(ProtocolError):
        hello = parse_hello(data.decode(errors="replace"))
        assert 0 <= hello.uptime < 1e9


def seeds_hello() -> list[bytes]:
    return [b"role=crash release=6.1.0 channel=ttyS1 uptime=3.20 net=yes vmcore=no dom0=no cmdline quiet ro"]


def fuzz_console(data: bytes) -> None:
    """What a serial line printed, as the tail of an error, on a terminal and as text for pages."""
    shown = printable_lines(tail(data, 20))
    assert len(shown) <= 20
    for line in (*shown, *printable_lines(data.decode(errors="replace"))):
        require_harmless(line)
        assert line.isprintable()


def seeds_console() -> list[bytes]:
    return [b"[    0.0] Linux\r\n\x1b[2J\x1b]0;t\x07\xff\xfe\x9b31m\r\n\xe2\x80\xae\n"]


def fuzz_words(data: bytes) -> None:
    """Text of a stranger as JSON on a terminal: harmless, and the same JSON."""
    text = data.decode("utf-8", errors="replace")
    encoded = json.dumps({"text": text}, ensure_ascii=False)
    shown = harmless_json(encoded)
    require_harmless(shown)
    assert json.loads(shown) == {"text": text}
    assert printable(printable(text)) == printable(text)


def seeds_words() -> list[bytes]:
    return ['\x1b[2J \u202e \x9b \U000e0001 \\ " é'.encode()]


# ---------------------------------------------------------------- TOML, timings, the batch's file


def fuzz_catalogue(data: bytes) -> None:
    """One file of a catalogue, as each kind of entry."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.toml"
        path.write_bytes(data)
        for read in (_as(Guest), _as(Kernel), _as(Scenario), _as(Selection)):
            with own_errors(CatalogueError):
                read(path)


def _as(kind: type[catalog.E]) -> Callable[[Path], catalog.E]:
    return lambda path: catalog.entry(kind, path)


def seeds_catalogue() -> list[bytes]:
    root = catalog.roots()[0]
    picked = ("guests/pae.toml", "kernels/debian-6.1.toml", "scenarios/panic.toml", "scenarios/selections/nightly.toml")
    return [(root / name).read_bytes() for name in picked]


def fuzz_timings(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timings.json"
        path.write_bytes(data)
        with own_errors(CatalogueError):
            for seconds in shard.shipped(path).values():
                assert 0 <= seconds < 1e9


def seeds_timings() -> list[bytes]:
    cells = [{"id": _CELL, "seconds": 12.5, "measured": True, "skip": ""}]
    return [json.dumps({"schema": 1, "cells": cells}).encode()]


def fuzz_batch(data: bytes) -> None:
    """matrix.json, from which --resume goes on."""
    from rig.batch import Batch

    with own_errors(EvidenceError):
        from_json(data, Batch, Path("matrix.json"))


def seeds_batch() -> list[bytes]:
    return [json.dumps({"patterns": ["nightly"], "shard": "", "started": "2026", "cells": [_CELL]}).encode()]


# ---------------------------------------------------------------- the history


@functools.cache
def _history() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / history.FILE
        with history.History(path) as kept:
            for result in _KINDS:
                kept.add(result, Path(folder) / "run")
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = DELETE")
        return path.read_bytes()


def fuzz_history(data: bytes) -> None:
    """SQLite's file, patched: each 6 bytes are an offset (4) and what stands there instead (2)."""
    blob = bytearray(_history())
    for at in range(0, len(data) - 5, 6):
        where = int.from_bytes(data[at : at + 4], "little") % len(blob)
        blob[where : where + 2] = data[at + 4 : at + 6]
    _read_history(bytes(blob))


def fuzz_history_file(data: bytes) -> None:
    """The same of a file that need not be one."""
    _read_history(data)


def _read_history(blob: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / history.FILE
        path.write_bytes(blob)
        with own_errors(RigError), history.History(path) as kept:
            kept.directories()
            records = kept.records("*panic*")
            require_harmless("\n".join(night_lines(records)))
            require_inert(render_matrix(records, lambda _: "", []))
            kept.add(_KINDS[0], Path(folder) / "run")


def seeds_history() -> list[bytes]:
    return [bytes([*where.to_bytes(4, "little"), 0xFF, 0x00]) for where in (0, 18, 40, 68, 100, 4096, 8200)]


def seeds_history_file() -> list[bytes]:
    return [_history()]


# ---------------------------------------------------------------- directories


def fuzz_directories(data: bytes) -> None:
    """A run's directory with the damage that the bytes name, up to four kinds, given to one command, the first byte's.

    In a memory file system, where there is one."""
    kinds = [list(DAMAGE)[byte % len(DAMAGE)] for byte in data[1:5]]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        run = damaged(make(Path(folder)), kinds)
        words = commands(run)
        out, err = io.StringIO(), io.StringIO()

        def read() -> tuple[str, str]:
            return out.getvalue(), err.getvalue()

        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            refuse(words[(data[0] if data else 0) % len(words)], read, Path(folder))


def seeds_directories() -> list[bytes]:
    return [bytes([0, 5, 12]), bytes([4, 30]), bytes([6, 33])]
