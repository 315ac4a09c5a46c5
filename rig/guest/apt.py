"""Debian package indexes and downloads through apt, with a private state per architecture.

apt does what it is good at: mirrors, signatures, hashes. It reads the machine's own sources, keyrings and
proxies, and writes only below the directory given: never the system's lists, never its dpkg database. So it
works unprivileged, and for i386 without `dpkg --add-architecture`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rig.errors import MachineError, PackageError
from rig.model import Arch

Progress = Callable[[str], None]

# What must not be inherited from the machine's apt.conf.d: hooks (they touch the system), other index targets
# (desktop metadata), and an architecture list that ours would be appended to. apt.conf(5), apt-get's
# acquire-additional-files.
_CONF = """\
#clear APT::Architectures;
#clear APT::Update;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages {
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  flatMetaKey "Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
  flatDescription "$(RELEASE) Packages";
};
Acquire::IndexTargets::deb-src::Sources {
  MetaKey "$(COMPONENT)/source/Sources";
  flatMetaKey "Sources";
  ShortDescription "Sources";
  Description "$(RELEASE)/$(COMPONENT) Sources";
  flatDescription "$(RELEASE) Sources";
};
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
APT::Sandbox::User "root";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
"""

_TARGET = "$(REPO_URI) $(RELEASE) $(COMPONENT)"  # a line for each index: what is repeated for another suite
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")  # package debian-archive-keyring
# Archives that go with a suite and are part of it; others (backports) are suites of their own.
_SAME_SUITE = ("", "-updates", "-security")
_ALONE = ("sid", "unstable", "experimental")  # nothing goes with these: they are updated themselves

_OUT_OF_STEP = re.compile(r"unexpected size|Hash Sum mismatch", re.IGNORECASE)
_DEADLINE = 900.0  # seconds for one apt command; its own timeouts notice a dead mirror long before


@dataclass(frozen=True)
class Candidate:
    """One version of a package in the index. arch: as the package says it (may be `all`). size: bytes."""

    name: str
    version: str
    arch: str
    section: str
    depends: tuple[str, ...]  # names only, the first of alternatives first
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The name that `apt-get download` gives the file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.arch}.deb"


def source_lines(environment: Mapping[str, str]) -> str | None:
    """sources.list text from RIG_MIRROR and RIG_SUITE (default: stable); None: the machine's own sources."""
    mirror = environment.get("RIG_MIRROR")
    if not mirror:
        return None
    return _source_line(mirror, environment.get("RIG_SUITE") or "stable", "main")


def suite_sources(targets: str, suite: str) -> str:
    """sources.list text for another suite, from the mirrors of a configuration that works.

    targets: what `apt-get indextargets` prints about that configuration, in _TARGET's format. A plain suite (bullseye)
    is looked for wherever the configuration's own suite, its -updates or its -security lie; one with a suffix
    (bookworm-backports) where the suite with that suffix lies, else where the plain one does. Flat sources, which
    know no suites, are left out. Empty when nothing is left.
    """
    named: dict[tuple[str, str, str], None] = {}  # mirror, suffix, component: in their order, once each
    for line in targets.splitlines():
        mirror, release, component = line.split(" ")
        if component and not release.endswith("/"):
            named[mirror, _suffix(release), component] = None
    wanted = _suffix(suite)
    if wanted:
        suffix = wanted if any(have == wanted for _, have, _ in named) else ""
        places = [(mirror, suite, component) for mirror, have, component in named if have == suffix]
    else:
        parts = ("",) if suite in _ALONE else _SAME_SUITE
        places = [(mirror, suite + have, component) for mirror, have, component in named if have in parts]
    return "".join(_source_line(*place) for place in places)


def source_package_lines(targets: str) -> str:
    """sources.list text for source packages, from where a configuration that works gets its binary ones.

    targets: as for suite_sources. Flat sources are left out. Empty when nothing is left.
    """
    places = dict.fromkeys(tuple(line.split(" ")) for line in targets.splitlines())
    return "".join(
        _source_line(mirror, release, component, "deb-src")
        for mirror, release, component in places
        if component and not release.endswith("/")
    )


def _suffix(release: str) -> str:
    """What follows the release's own name: -security of bookworm-security."""
    return "".join(release.partition("-")[1:])


def _source_line(mirror: str, suite: str, component: str, kind: str = "deb") -> str:
    """A line of sources.list. Without Debian's keyring file, it is apt's own trusted keys that count."""
    signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    return f"{kind} {signed}{mirror} {suite} {component}\n"


def host_arch() -> Arch:
    """This machine's own architecture: that of the tools that run on it.

    :raise MachineError: not x86
    """
    machine = platform.machine()
    if machine == "x86_64":
        return Arch.AMD64
    if re.fullmatch(r"i[3-6]86", machine):
        return Arch.I386
    raise MachineError(f"this machine is {machine}", hint="kernel modules for the guests are built on x86 only")


def version_key(version: str) -> tuple[object, ...]:
    """A sort key that orders as dpkg does (deb-version(7)): `~` before the end, letters before the rest."""

    def part(text: str) -> tuple[object, ...]:
        def order(character: str) -> int:
            if character == "~":
                return -1
            return ord(character) + (0 if character.isalpha() else 256)

        pieces = re.findall(r"(\D*)(\d*)", text)
        return tuple(((*map(order, other), 0), int(digits or 0)) for other, digits in pieces)

    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch), part(upstream), part(revision)


def parse_depends(field: str) -> tuple[str, ...]:
    """Package names of a Depends field, without versions and architectures, alternatives in their order."""
    names = (re.match(r"\s*([a-z0-9][a-z0-9+.-]*)", item) for item in re.split(r"[,|]", field))
    return tuple(dict.fromkeys(match[1] for match in names if match))


def parse_candidates(text: str) -> list[Candidate]:
    """The stanzas of `apt-cache show` that can be downloaded, in their order."""
    found = []
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
        if not all(fields.get(key) for key in ("Package", "Version", "Architecture", "Filename", "SHA256")):
            continue
        found.append(
            Candidate(
                name=fields["Package"],
                version=fields["Version"],
                arch=fields["Architecture"],
                section=fields.get("Section", ""),
                depends=parse_depends(", ".join(fields.get(k, "") for k in ("Pre-Depends", "Depends"))),
                sha256=fields["SHA256"],
                size=int(fields.get("Size", "0")),
            )
        )
    return found


def complaints(output: str) -> list[str]:
    """What apt complained about, each line once, without the advice it repeats."""
    lines = (line.strip() for line in output.splitlines() if re.match(r"[EW]: ", line))
    return list(dict.fromkeys(line for line in lines if "Some index files failed" not in line))


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Apt:
    """apt for one architecture, with its state below `home`. Not locked: the caller sees to that.

    sources: sources.list text instead of the machine's own sources.
    """

    def __init__(self, home: Path, arch: Arch, progress: Progress, sources: str | None = None) -> None:
        self.home = home
        self.arch = arch
        self.progress = progress
        self.sources = sources
        self.troubles: list[str] = []  # apt's words from the last update

    def update(self, *, must_reach: bool) -> None:
        """Fetch the indexes. A source that fails is done without (or with what it said before), and reported
        through progress. must_reach: not with old indexes alone.

        :raise PackageError: no index at all could be had
        :raise MachineError: no apt on this machine, no disk space
        """
        self._prepare()
        self.progress(f"reading package indexes ({self.arch})")
        done = self._run("apt-get", "update")
        if _OUT_OF_STEP.search(done.stderr):  # a mirror in the middle of its own update: it may be through now
            done = self._run("apt-get", "update")
        self.troubles = complaints(done.stderr)
        reached = re.search(r"^(Hit|Get):", done.stdout, re.MULTILINE) is not None
        indexed = any(any((self.home / "state/lists").glob(f"*{kind}*")) for kind in ("Packages", "Sources"))
        if not indexed or (must_reach and not reached):
            raise PackageError(
                f"no package index for {self.arch} could be had: {self._words(done.stderr)}",
                hint="the first run needs the network and Debian package sources (the machine's own, or "
                "RIG_MIRROR=URL RIG_SUITE=NAME); later runs need neither",
            )
        for trouble in self.troubles:
            self.progress(f"without a package source ({self.arch}): {trouble}")

    def targets(self) -> str:
        """The indexes that the sources name, fetched or not, a line each in _TARGET's format. Asks no network."""
        self._prepare()
        options = ("--no-release-info", f"--format={_TARGET}", "Created-By: Packages")
        return self._run("apt-get", "indextargets", *options).stdout

    def names(self, pattern: str) -> list[str]:
        """Names in the index that the regular expression matches in full, in no particular order."""
        expression = re.compile(pattern)
        listed = self._run("apt-cache", "pkgnames").stdout.split()
        return [name for name in listed if expression.fullmatch(name)]

    def candidates(self, names: Sequence[str], *, all_versions: bool = False) -> list[Candidate]:
        """For each name that the index has, the version apt would install; or all of its versions."""
        if not names:
            return []
        which = "--all-versions" if all_versions else "--no-all-versions"
        # Without names that exist apt-cache says so by its exit code: an empty list here.
        return parse_candidates(self._run("apt-cache", "show", which, "--", *names).stdout)

    def download(self, wanted: Iterable[Candidate], into: Path) -> list[Candidate]:
        """Download and verify; returns those that came, as into/FILENAME. The others' reasons: `troubles`."""
        wanted = list(wanted)
        if not wanted:
            return []
        megabytes = sum(candidate.size for candidate in wanted) / 1e6
        what = wanted[0].name if len(wanted) == 1 else f"{len(wanted)} packages"
        self.progress(f"downloading {what} ({self.arch}, {megabytes:.1f} MB)")
        done = self._run("apt-get", "download", "--", *(f"{c.name}={c.version}" for c in wanted), cwd=into)
        self.troubles = complaints(done.stderr) or self.troubles
        return [c for c in wanted if self._arrived(c, into / c.filename)]

    def download_source(self, name: str, into: Path) -> Path:
        """Download a source package, verified by the (signed) index; returns its upstream tarball, in `into`.

        :raise PackageError: it can't be had
        """
        self.progress(f"downloading the source package {name}")
        done = self._run("apt-get", "source", "--download-only", "--", name, cwd=into)
        found = sorted(into.glob(f"{name}_*.orig.tar.*[!c]"))  # not its signature, .asc
        if done.returncode or len(found) != 1:
            raise PackageError(
                f"the source package {name} can't be had: {self._words(done.stderr)}",
                hint="is the network up, and does the mirror carry source packages? RIG_MIRROR=URL chooses another",
            )
        return found[0]

    def _arrived(self, candidate: Candidate, path: Path) -> bool:
        """Whether the file is there with the hash of the (signed) index; one with another hash is removed."""
        if not path.exists():
            return False
        if file_sha256(path) == candidate.sha256:
            return True
        path.unlink()
        self.troubles.append(f"{candidate.filename}: not the SHA256 that the index promises")
        return False

    def _prepare(self) -> None:
        for directory in ("state/lists/partial", "cache/archives/partial"):
            (self.home / directory).mkdir(parents=True, exist_ok=True)
        (self.home / "state/status").touch()  # an empty dpkg database: nothing is installed
        (self.home / "apt.conf").write_text(_CONF)
        if self.sources is not None:
            (self.home / "sources.list").write_text(self.sources)

    def _options(self) -> list[str]:
        state, cache = self.home / "state", self.home / "cache"
        options = {
            "APT::Architecture": self.arch.value,
            "APT::Architectures::": self.arch.value,
            "Dir::State": state,
            "Dir::State::lists": state / "lists",
            "Dir::State::status": state / "status",
            "Dir::Cache": cache,
            "Dir::Cache::archives": cache / "archives",
        }
        if self.sources is not None:
            options |= {
                "Dir::Etc::sourcelist": self.home / "sources.list",
                "Dir::Etc::sourceparts": "/dev/null",
            }
        return [f"--option={key}={value}" for key, value in options.items()]

    def _run(self, tool: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run apt-get or apt-cache; the caller judges by what came of it, since exit 100 may be partial."""
        executable = shutil.which(tool)
        if executable is None:
            raise MachineError(
                f"{tool} is not on this machine",
                hint="kernels and guest tools are Debian packages. Install apt and dpkg (other distributions "
                "have them too) and set RIG_MIRROR=URL RIG_SUITE=NAME of a Debian mirror; or copy a filled "
                "cache from a machine that has them, RIG_CACHE=DIR. Your own kernel: --kernel BZIMAGE",
            )
        argv = [executable, f"--config-file={self.home / 'apt.conf'}", *self._options(), "-q", *arguments]
        try:
            done = subprocess.run(
                argv,
                cwd=cwd or self.home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_DEADLINE,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
        except subprocess.TimeoutExpired as error:
            raise PackageError(f"{tool} {arguments[0]} did not end within {_DEADLINE:.0f} s") from error
        if "No space left" in done.stderr or "enough free space" in done.stderr:
            raise MachineError(
                f"{tool} {arguments[0]}: {self._words(done.stderr)}",
                hint=f"free some space below {self.home}, or put the cache elsewhere with RIG_CACHE",
            )
        return done

    @staticmethod
    def _words(output: str) -> str:
        return "; ".join(complaints(output)) or output.strip() or "apt found no package source"
