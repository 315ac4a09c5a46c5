"""Real schedulers and workers, processes of their own on the loopback; what they run is pretended but for one cell."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from rig import ingredients
from rig.cluster import address, client, link
from rig.cluster.client import Engine
from rig.cluster.parcel import Parcel, gathered
from rig.errors import MachineError
from rig.evidence.reader import Evidence
from rig.guest.cache import default_root
from rig.matrix import ENDED_WORKERS
from rig.model import MOST_MEMORY, Options, RunPlan, Verdict
from rig.pool import Finished
from tests.cluster.pretended import DIE, PASS, TAMPER, WAIT, start
from tests.processes import is_running
from tests.test_ingredients import made
from tests.test_pool import SCENARIO, Log, make_plan

pytestmark = pytest.mark.vm  # they take long

CHECKS = ("pgd-survives",)  # what is skipped is judged by the real rig
SECONDS = 60  # that anything may take: a busy machine starts a Dask worker in ten

Process = subprocess.Popen[str]


def wait_for(what: Callable[[], object]) -> None:
    """Until it is true. The processes that are looked at can't be waited for otherwise: they are not ours."""
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.02)


@contextlib.contextmanager
def ending(process: Process) -> Iterator[Process]:
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@contextlib.contextmanager
def scheduler(directory: Path, *words: str | Path) -> Iterator[tuple[str, Process]]:
    """`rig cluster scheduler`, with a cache of its own: its address, and its process."""
    command = [sys.executable, "-m", "rig", "cluster", "scheduler", "--port", "0", "--json", *map(str, words)]
    environment = {**os.environ, "RIG_CACHE": str(directory / "scheduler")}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=(directory / "scheduler.err").open("w"),
        env=environment,
        text=True,
    )
    with ending(process):
        yield read_json(process)["scheduler"], process


def read_json(process: Process) -> dict[str, str]:
    """The document that a process prints when it is ready."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    told: dict[str, str] = json.loads(text)
    return told


@contextlib.contextmanager
def workers(where: str, directory: Path, *names: str, tls: tuple[Path, ...] = ()) -> Iterator[list[Process]]:
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(ending(start(where, name, directory, *tls))) for name in names]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started


class Cluster:
    """A client, and what it is given to run."""

    def __init__(self, where: str, directory: Path, tls: address.Tls | None = None) -> None:
        self.directory, self.address = directory, address.parse(where, tls)
        self.results, self.cancel, self.log = directory / "results", threading.Event(), Log()

    def gather(self, plan: RunPlan, _tell: object) -> Parcel:
        root = self.directory / f"cache-{plan.guest.name}"
        return gathered(ingredients.record(made(root, self.directory / "bzImage"), root, ""), root)

    @contextlib.contextmanager
    def connected(self) -> Iterator[Engine]:
        options = Options(results=self.results, deadline=SECONDS, remarks={"batch": "b"})
        with client.connected(self.address, options, self.cancel, self.gather) as engine:
            yield engine

    def run(self, **cells: str) -> list[Finished | None]:
        """cells: what the run does, by the name of its guest."""
        with self.connected() as engine:
            return engine.execute(plans(cells), {"remark": "r"}, self.log, self.cancel)

    def marks(self, name: str, what: str) -> list[str]:
        return [path.read_text() for path in (self.directory / "marks").glob(f"{name}.{what}.*")]


def plans(cells: Mapping[str, str]) -> list[RunPlan]:
    return [
        replace(make_plan(name), scenario=replace(SCENARIO, description=what, checks=()))
        for name, what in cells.items()
    ]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A scheduler and two machines of one CPU."""
    directory = tmp_path_factory.mktemp("lab")
    with scheduler(directory) as (where, _), workers(where, directory, "ann", "bob"):
        yield where, directory


@pytest.fixture
def cluster(lab: tuple[str, Path]) -> Cluster:
    where, directory = lab
    shutil.rmtree(directory / "marks")
    shutil.rmtree(directory / "results", ignore_errors=True)
    (directory / "marks").mkdir()
    return Cluster(where, directory)


def test_cells_come_back_as_they_would_from_this_machine(cluster: Cluster) -> None:
    finished = cluster.run(a=PASS, b=PASS, c=PASS, d=PASS)
    assert [outcome and outcome[0].id for outcome in finished] == [f"panic@{name}/k" for name in "abcd"]
    assert {path.name for path in cluster.results.iterdir()} == {f"panic_{name}_k" for name in "abcd"}
    places = set()
    for outcome in finished:
        assert outcome is not None
        told = dict(outcome[0].environment)
        places.add(told.pop("worker"))
        assert told == {"batch": "b", "remark": "r"}
    assert places == {"ann", "bob"}
    for line in ("start", "boot"):
        assert ("panic@a/k", line) in cluster.log.lines
    assert ("panic@a/k", "end", "pass") in cluster.log.lines
    # What a worker is sent is in the store of the scheduler and of the worker, by its hash.
    kernel = cluster.gather(plans({"a": PASS})[0], None).manifest.sha256["cache/modules/damage.ko"]
    for store in ("scheduler/cluster", "store-ann"):
        assert (cluster.directory / store / "blobs" / kernel).read_text() == "damage.ko"


def test_a_worker_that_is_killed_loses_nothing_and_its_guest_dies_with_it(cluster: Cluster) -> None:
    def kill() -> None:
        wait_for(lambda: cluster.marks("b", "guest"))
        os.kill(int(cluster.marks("b", "began")[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    finished = cluster.run(a=PASS, b=WAIT, c=PASS)
    killer.join()
    assert [outcome and outcome[0].verdict for outcome in finished] == [Verdict.PASS] * 3
    assert finished[1] is not None
    assert len(cluster.marks("b", "began")) == 2
    (ended,) = finished[1][0].environment[ENDED_WORKERS]
    assert {ended, finished[1][0].environment["worker"]} == {"ann", "bob"}
    assert finished[0] is not None
    assert ENDED_WORKERS not in finished[0][0].environment
    assert ("panic@b/k", "end", "worker lost") in cluster.log.lines
    (guest,) = cluster.marks("b", "guest")
    wait_for(lambda: not is_running(int(guest)))


def test_a_cell_that_ends_two_workers_is_that_cells_error_and_no_others(cluster: Cluster) -> None:
    finished = cluster.run(a=PASS, b=DIE, c=PASS, d=PASS)
    assert [outcome and outcome[0].verdict for outcome in finished] == [
        *(Verdict.PASS, Verdict.ERROR),
        *(Verdict.PASS, Verdict.PASS),
    ]
    assert len(cluster.marks("b", "began")) == 2
    assert finished[1] is not None
    result, where = finished[1]
    assert where == cluster.results / "panic_b_k"
    assert result.error is not None
    assert "both workers that ran it ended with it" in result.error.message
    assert len(result.environment[ENDED_WORKERS]) == 2


def test_what_is_cancelled_is_ended_on_the_workers(cluster: Cluster) -> None:
    def stop() -> None:
        wait_for(lambda: cluster.marks("a", "guest") and cluster.marks("b", "guest"))
        cluster.cancel.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    assert cluster.run(a=WAIT, b=WAIT, c=PASS) == [None, None, None]
    stopper.join()
    for name in "ab":
        wait_for(lambda name=name: cluster.marks(name, "stopped"))  # type: ignore[misc]
        assert not is_running(int(cluster.marks(name, "guest")[0]))
    assert not cluster.marks("c", "began")
    assert not list(cluster.results.glob("*"))


def test_a_client_that_is_gone_ends_what_it_began_and_another_is_served(cluster: Cluster) -> None:
    with cluster.connected() as engine:
        with pytest.raises(MachineError, match="another matrix runs"):
            cluster.run(a=PASS)
        assert engine.capacity.cpus == 2
    assert cluster.run(a=PASS)[0] is not None


def test_other_files_than_those_that_were_sent_are_noticed(cluster: Cluster) -> None:
    (outcome,) = cluster.run(t=TAMPER)
    assert outcome is not None
    result, _ = outcome
    assert result.verdict is Verdict.ERROR
    assert result.error is not None
    assert "ran other files" in result.error.message
    assert "remove the directory" in result.error.hint


# ---------------------------------------------------------------- TLS


def certificate(directory: Path, name: str) -> tuple[Path, Path, Path]:
    """An authority, and what it has signed for the loopback: PEM files of authority, certificate, key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)
    keys = {what: ec.generate_private_key(ec.SECP256R1()) for what in ("ca", "cert")}
    names = {what: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name}-{what}")]) for what in keys}
    files = {what: directory / f"{name}-{what}.pem" for what in ("ca", "cert", "key")}
    for what, own in keys.items():
        signed = (
            x509.CertificateBuilder()
            .subject_name(names[what])
            .issuer_name(names["ca"])
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=what == "ca", path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(keys["ca"], hashes.SHA256())
        )
        files[what].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files["key"].write_bytes(keys["cert"].private_bytes(*pem))
    return files["ca"], files["cert"], files["key"]


def test_what_is_skipped_needs_no_worker_and_what_fits_nowhere_gets_none(cluster: Cluster) -> None:
    (plan,) = plans({"s": PASS})
    skipped = replace(plan, skip="no such CPU", scenario=replace(plan.scenario, trigger="sysrq-c", checks=CHECKS))
    large = replace(plan, guest=replace(plan.guest, name="large", memory=MOST_MEMORY))
    with cluster.connected() as engine:
        done = engine.execute([skipped, large], {}, cluster.log, cluster.cancel)
    assert [outcome and outcome[0].verdict for outcome in done] == [Verdict.SKIP, Verdict.ERROR]
    assert done[1] is not None
    assert done[1][0].error is not None
    assert "not enough memory" in done[1][0].error.message
    assert not cluster.marks("s", "began")
    assert not cluster.marks("large", "began")


class Guarded:
    """A scheduler that takes TLS, and whom it knows. A worker comes later."""

    def __init__(self, directory: Path, where: str, process: Process, ours: tuple[Path, ...]) -> None:
        self.directory, self.where, self.process, self.ours = directory, where, process, ours
        self.cluster = Cluster(where, directory, address.Tls(*ours))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("guarded")
    ours = certificate(directory, "ours")
    words = ("--tls-ca", ours[0], "--tls-cert", ours[1], "--tls-key", ours[2])
    with scheduler(directory, *words) as (where, process):
        yield Guarded(directory, where, process, ours)


def test_without_workers_it_does_not_wait_for_ever(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SECONDS", 0.5)
    with pytest.raises(MachineError, match="there was no worker") as raised:
        guarded.cluster.run(a=PASS)
    assert f"rig cluster worker {guarded.where}" in raised.value.hint


def test_tls_lets_in_nobody_whom_it_does_not_know(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guarded.where.startswith("tls://127.0.0.1:")
    monkeypatch.setattr(link, "CONNECT_SECONDS", 1)
    theirs = address.Tls(*certificate(guarded.directory, "theirs"))
    for where, tls in ((guarded.where, theirs), (guarded.where.replace("tls", "tcp"), None)):
        with pytest.raises(MachineError, match="no scheduler answers"):
            Cluster(where, guarded.directory, tls).run(a=PASS)


def test_a_worker_without_a_scheduler_does_not_wait_for_ever(guarded: Guarded, tmp_path: Path) -> None:
    """Here: with one that speaks TLS only."""
    with start(guarded.where.replace("tls", "tcp"), "eve", tmp_path) as worker:
        assert worker.wait(SECONDS) != 0
    assert "no scheduler answers" in (tmp_path / "eve.err").read_text()


def test_over_tls_cells_are_run_and_the_schedulers_end_is_everybodys(guarded: Guarded) -> None:
    cluster = guarded.cluster
    with workers(guarded.where, guarded.directory, "ann", tls=guarded.ours) as (worker,):
        (outcome,) = cluster.run(a=PASS)
        assert outcome is not None
        assert outcome[0].verdict is Verdict.PASS

        def kill() -> None:
            wait_for(lambda: cluster.marks("b", "guest"))
            guarded.process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(MachineError, match=r"the scheduler .* is gone") as raised:
            cluster.run(b=WAIT)
        killer.join()
        assert "--resume" in raised.value.hint
        wait_for(lambda: cluster.marks("b", "stopped"))
        assert worker.wait(SECONDS) != 0
        assert "is gone" in (guarded.directory / "ann.err").read_text()


# ---------------------------------------------------------------- a real cell


def test_a_real_cell_on_a_real_worker(tmp_path: Path) -> None:
    """The worker has an empty cache but for what it has measured: everything comes from the client."""
    own = tmp_path / "worker"
    own.mkdir()
    for known in ("kvm.json", "kallsyms"):
        if (there := default_root() / known).is_dir():
            shutil.copytree(there, own / known)
        elif there.exists():
            shutil.copy(there, own)
    with scheduler(tmp_path) as (where, _):
        command = [sys.executable, "-m", "rig", "cluster", "worker", where, "--jobs", "1", "--json"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "worker.err").open("w"),
            env={**os.environ, "RIG_CACHE": str(own)},
            text=True,
        )
        with ending(process):
            assert read_json(process)["scheduler"] == where
            words = ["matrix", "panic@i386/debian-6.1", "--cluster", where, "--results", str(tmp_path / "results")]
            done = subprocess.run(
                [sys.executable, "-m", "rig", *words, "--json"],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=600,
                check=False,
            )
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert run["result"]["verdict"] == "pass"
    assert not (own / "trees").exists()
    manifest = Evidence(Path(run["directory"])).facts.manifest
    assert manifest is not None
    assert any(path.startswith("cache/trees/") for path in manifest.packages)
    assert ingredients.lost(manifest, default_root()) == []  # it can be run again here: rig rerun
