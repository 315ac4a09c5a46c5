"""From package names to verified .deb files in the cache: what to take when not everything can be had."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rig.errors import PackageError
from rig.guest.apt import Apt, Candidate, Progress, file_sha256, source_package_lines, suite_sources, version_key
from rig.guest.cache import Cache
from rig.model import Arch

_LIBRARY_SECTIONS = ("libs", "oldlibs")

Found = tuple[Candidate, Path]  # a version of a package, and its .deb


def digest(*parts: str) -> str:
    """A short name for these strings, safe in a path."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


class Repository:
    """The package sources of this machine. Every method: only while the cache is locked.

    sources: sources.list text instead of the machine's own. suite: instead of the suites that the sources name, this
    one from the same mirrors.
    """

    def __init__(self, cache: Cache, progress: Progress, sources: str | None, suite: str = "") -> None:
        base = "system" if sources is None else f"mirror-{digest(sources)}"
        self.origin = f"{base}-{suite}" if suite else base
        self._cache = cache
        self._progress = progress
        self._sources = sources
        self._suite = suite
        self._indexes: dict[Arch, Apt] = {}
        self._source_index: Apt | None = None

    @property
    def described(self) -> str:
        return f"the suite {self._suite}" if self._suite else "the package sources"

    def obtain(self, arch: Arch, names: Sequence[str], version: str = "") -> list[Found]:
        """Each name's .deb, in that order. Of each: the given version if there is one, else the one that apt
        would install; failing that, the newest that downloads, and that is reported.

        :raise PackageError: one of them can't be had
        """
        apt = self._index(arch)
        chosen = {candidate.name: candidate for candidate in apt.candidates(names)}
        if missing := [name for name in names if name not in chosen]:
            raise self._failure(arch, f"no package {', '.join(missing)} for {arch} in {self.described}")
        if version:
            exact = apt.candidates(names, all_versions=True)
            chosen |= {candidate.name: candidate for candidate in exact if candidate.version == version}
        self._download(arch, chosen.values())
        return [self._settle(arch, chosen[name]) for name in names]

    def matching(self, arch: Arch, pattern: str) -> list[Candidate]:
        """Packages whose names match in full, newest version first."""
        apt = self._index(arch)
        found = apt.candidates(sorted(apt.names(pattern)))
        return sorted(found, key=lambda candidate: (version_key(candidate.version), candidate.name), reverse=True)

    def first_available(self, arch: Arch, candidates: Iterable[Candidate]) -> Iterable[Found]:
        """Those that download, in order, fetched one by one as they are asked for."""
        for candidate in candidates:
            self._download(arch, [candidate])
            if (deb := self._deb(candidate)).exists():
                yield candidate, deb
            else:
                self._progress(f"{candidate.filename} can't be had: {self.troubles(arch)}")

    def with_libraries(self, arch: Arch, names: Sequence[str]) -> list[str]:
        """The names, and of all that they depend on, directly or not, the shared libraries' packages."""
        apt = self._index(arch)
        wanted = dict.fromkeys(names)
        seen, todo = set(names), list(names)
        while todo:
            found = [c for c in apt.candidates(todo) if c.name in wanted or _is_library(c)]
            wanted |= dict.fromkeys(candidate.name for candidate in found)
            todo = sorted({name for candidate in found for name in candidate.depends} - seen)
            seen |= set(todo)
        return list(wanted)

    def source(self, arch: Arch, name: str) -> Path:
        """The upstream tarball of a source package, from the mirrors that binary packages come from.

        arch: any; says whose package sources are asked.

        :raise PackageError: it can't be had
        """
        if self._source_index is None:
            text = source_package_lines(self._index(arch).targets())
            apt = Apt(self._cache.root / self.origin / "apt" / "source", arch, self._progress, text)
            apt.update(must_reach=self._cache.refresh)
            self._source_index = apt
        with self._cache.scratch() as directory:
            archive = self._source_index.download_source(name, directory)
            final = self._cache.root / "source-packages" / file_sha256(archive) / archive.name
            final.parent.mkdir(parents=True, exist_ok=True)
            return archive.rename(final)

    def troubles(self, arch: Arch) -> str:
        """What apt complained about last."""
        apt = self._indexes.get(arch)
        return "; ".join(apt.troubles) if apt and apt.troubles else "apt says nothing more"

    def _index(self, arch: Arch) -> Apt:
        """apt with indexes that were read anew once in this object's life."""
        if arch not in self._indexes:
            home = self._cache.root / self.origin / "apt" / arch
            apt = Apt(home, arch, self._progress, self._sources)
            if self._suite:
                self._progress(f"suite {self._suite} of the machine's own mirrors ({arch})")
                apt = Apt(home, arch, self._progress, self._other_suite(apt))
            try:
                apt.update(must_reach=self._cache.refresh)
            except PackageError as problem:
                if self._suite:
                    raise PackageError(f"{self.described}: {problem.message}", hint=self._suite_hint()) from problem
                raise
            self._indexes[arch] = apt
        return self._indexes[arch]

    def _other_suite(self, apt: Apt) -> str:
        """sources.list text for the suite, from the mirrors that apt has."""
        text = suite_sources(apt.targets(), self._suite)
        if not text:
            raise PackageError(
                f"no package source that the suite {self._suite} could come from", hint=self._suite_hint()
            )
        return text

    def _suite_hint(self) -> str:
        return (
            f"does the mirror still carry {self._suite}? Old suites move to Debian's archive: RIG_MIRROR=URL. A key "
            "that apt does not know: install a newer debian-archive-keyring"
        )

    def _deb(self, candidate: Candidate) -> Path:
        return self._cache.root / "debs" / candidate.sha256 / candidate.filename

    def _download(self, arch: Arch, candidates: Iterable[Candidate]) -> None:
        """Put into the cache what isn't there yet, as far as it can be had."""
        absent = [candidate for candidate in candidates if not self._deb(candidate).exists()]
        with self._cache.scratch() as directory:
            for candidate in self._index(arch).download(absent, directory):
                final = self._deb(candidate)
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(directory / candidate.filename, final)

    def _settle(self, arch: Arch, candidate: Candidate) -> Found:
        """The candidate, or where it didn't download another version of the package."""
        if self._deb(candidate).exists():
            return candidate, self._deb(candidate)
        troubles = self.troubles(arch)
        versions = self._index(arch).candidates([candidate.name], all_versions=True)
        others = [other for other in versions if other.version != candidate.version]
        others.sort(key=lambda other: version_key(other.version), reverse=True)
        for other, deb in self.first_available(arch, others):
            self._progress(f"{candidate.name} {candidate.version} can't be had; taking {other.version}")
            return other, deb
        raise self._failure(arch, f"{candidate.filename} can't be had: {troubles}")

    def _failure(self, arch: Arch, message: str) -> PackageError:
        return PackageError(
            message,
            hint=f"is the network up, and do the sources carry {arch} packages? apt: {self.troubles(arch)}",
        )


def _is_library(candidate: Candidate) -> bool:
    return candidate.section.rpartition("/")[2] in _LIBRARY_SECTIONS
