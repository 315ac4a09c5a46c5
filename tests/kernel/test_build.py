"""Building kernels: fragments, what a build is known by, trees, make's progress and its end. (vm: tests/runs.)"""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rig import catalog
from rig.errors import Cancelled, MachineError, RequestError
from rig.kernel import make
from rig.kernel.build import Recipe, _apply, _copy_tree, _link_or_copy, _move_tools, fragment_names
from rig.kernel.config import Option, declared, merge, read_fragment, to_config, unmet
from rig.model import Arch
from tests.processes import has_ended


def fragment(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ---------------------------------------------------------------- fragments


def test_a_fragment_is_read_without_its_reasons(tmp_path: Path) -> None:
    text = '# kexec\n\nCONFIG_KEXEC=y   # loads the crash kernel\nCONFIG_SMP=n # one CPU\nCONFIG_L="-a #b" # a name\n'
    options = read_fragment(fragment(tmp_path / "a.config", text))
    assert [(o.name, o.value) for o in options] == [("CONFIG_KEXEC", "y"), ("CONFIG_SMP", "n"), ("CONFIG_L", '"-a #b"')]
    assert to_config(options) == 'CONFIG_KEXEC=y\n# CONFIG_SMP is not set\nCONFIG_L="-a #b"\n'


@pytest.mark.parametrize(
    "line", ["CONFIG_KEXEC=y", "KEXEC=y # why", "CONFIG_KEXEC # why", "CONFIG_KEXEC=y # ", "select X"]
)
def test_a_line_without_name_value_or_reason_is_refused_with_its_place(line: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"a\.config:2: "):
        read_fragment(fragment(tmp_path / "a.config", f"# first\n{line}\n"))


def test_fragments_that_contradict_each_other() -> None:
    options = [[Option("CONFIG_X", value, Path(f"{value}.config"))] for value in ("y", "n")]
    with pytest.raises(RequestError, match=r"n\.config: CONFIG_X=n, but y\.config"):
        merge(options)
    assert merge([options[0], options[0]]) == (options[0][0],)


def test_what_kconfig_did_not_take_is_named_with_its_fragment() -> None:
    here = Path("kernels/config/base.config")
    asked = [Option(f"CONFIG_{name}", value, here) for name, value in (("A", "y"), ("B", "y"), ("C", "n"), ("D", "n"))]
    assert unmet(asked, {"CONFIG_A": "y", "CONFIG_C": "y"}, [option.name for option in asked]) == [
        "CONFIG_B=y (base.config) is n",
        "CONFIG_C=n (base.config) is y",
    ]


def test_an_option_of_another_version_or_architecture_is_not_taken_for_one_that_is_off(tmp_path: Path) -> None:
    (tmp_path / "arch/x86").mkdir(parents=True)
    (tmp_path / "arch/mips").mkdir()
    (tmp_path / "arch/Kconfig").write_text("config KPROBES\n")
    (tmp_path / "arch/x86/Kconfig.cpu").write_text("choice\nconfig M686\n\tbool\nendchoice\n  menuconfig HYPERVISOR\n")
    (tmp_path / "arch/mips/Kconfig").write_text("config HIGHMEM64G\n\tdepends on config\n")
    known = declared(tmp_path)
    assert known == {"CONFIG_KPROBES", "CONFIG_M686", "CONFIG_HYPERVISOR"}
    gone = Option("CONFIG_HIGHMEM64G", "n", Path("amd64.config"))
    assert unmet([gone], {}, known) == [f"{gone.name}=n (amd64.config) is no option of this source"]


def test_the_rigs_own_kernels_have_all_their_files() -> None:
    """Every fragment for every flavour that guests have, each readable and free of contradictions, and every patch."""
    catalogue = catalog.load(())
    built = [kernel for kernel in catalogue.kernels.values() if kernel.source]
    assert built
    for kernel in built:
        if kernel.patch:
            assert catalog.build_file(f"controls/{kernel.patch}.patch").read_text().startswith("What: ")
        for guest in catalogue.guests.values():
            names = fragment_names(kernel, guest)
            options = merge(read_fragment(catalog.build_file(f"config/{name}.config")) for name in names)
            assert {"CONFIG_KEXEC", "CONFIG_64BIT"} <= {option.name for option in options}


def test_a_fragment_that_is_not_there() -> None:
    with pytest.raises(RequestError, match=r"'bass\.config'; did you mean 'base\.config'"):
        catalog.build_file("config/bass.config")


def test_files_of_a_kernel_of_the_users_are_found_beside_it_before_the_rigs(tmp_path: Path) -> None:
    for name in ("config/base.config", "controls/mine.patch"):
        (tmp_path / "kernels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kernels" / name).write_text("")
    assert catalog.build_file("config/base.config", tmp_path) == tmp_path / "kernels/config/base.config"
    assert catalog.build_file("controls/mine.patch", tmp_path) == tmp_path / "kernels/controls/mine.patch"
    assert catalog.build_file("config/net.config", tmp_path) == catalog.build_file("config/net.config")
    with pytest.raises(RequestError, match=r"'mine\.patch'"):
        catalog.build_file("controls/mine.patch")


# ---------------------------------------------------------------- what a build is known by

RECIPE = Recipe("linux-source-6.1", "", "ab" * 32, Arch.I386, "686", (Option("CONFIG_X", "y", Path("x")),), "gcc 12")


def test_a_build_is_known_by_all_that_its_outcome_depends_on(tmp_path: Path) -> None:
    patch = fragment(tmp_path / "p.patch", "one")
    patched = replace(RECIPE, patch=patch)
    names = [
        RECIPE.name,
        replace(RECIPE, source_id="cd" * 32).name,
        replace(RECIPE, arch=Arch.AMD64).name,
        replace(RECIPE, options=(Option("CONFIG_X", "n", Path("x")),)).name,
        replace(RECIPE, compiler="gcc 13").name,
        patched.name,
    ]
    patch.write_text("two")
    names.append(patched.name)
    assert len(set(names)) == len(names)
    assert patched.plain.name == RECIPE.name
    assert replace(RECIPE, options=(Option("CONFIG_X", "y", Path("moved")),)).name == RECIPE.name


def test_make_is_told_architecture_and_the_objects_with_types() -> None:
    arguments = RECIPE.make_arguments()
    assert arguments[0] == "ARCH=i386"
    assert "CFLAGS_fork.o=-g -gdwarf-4" in arguments


# ---------------------------------------------------------------- trees


def test_a_patched_tree_shares_the_source_and_leaves_the_plain_one_alone(tmp_path: Path) -> None:
    source, plain, patched = tmp_path / "source", tmp_path / "plain" / "tree", tmp_path / "patched" / "tree"
    source.mkdir()
    plain.parent.mkdir()
    patched.parent.mkdir()
    (source / "a.c").write_text("one\n")
    (source / "b.c").write_text("b\n")
    _copy_tree(source, plain, os.link)
    (plain / ".a.o.cmd").write_text("made")
    _copy_tree(plain, patched, _link_or_copy)
    _apply(fragment(tmp_path / "p.patch", "--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-one\n+two\n"), patched)
    (patched / ".a.o.cmd").write_text("written into")
    assert (patched / "a.c").read_text() == "two\n"
    assert [(plain / name).read_text() for name in ("a.c", ".a.o.cmd")] == ["one\n", "made"]
    assert (source / "a.c").read_text() == "one\n"
    assert (patched / "b.c").samefile(source / "b.c")


def test_what_make_noted_of_its_tools_is_moved_with_the_tree(tmp_path: Path) -> None:
    plain, tree = tmp_path / "plain", tmp_path / "copy"
    for root in (plain, tree):
        (root / "tools/objtool").mkdir(parents=True)
        (root / "tools/objtool/.check.o.cmd").write_text(f"{plain}/tools/objtool/check.o: /usr/include/stdio.h\n")
    _move_tools(plain, tree)
    assert (tree / "tools/objtool/.check.o.cmd").read_text().startswith(f"{tree}/tools/objtool/check.o: /usr")
    assert (plain / "tools/objtool/.check.o.cmd").read_text().startswith(f"{plain}/")


def test_a_patch_that_does_not_apply(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("other\n")
    patch = fragment(tmp_path / "p.patch", "--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-one\n+two\n")
    with pytest.raises(RequestError, match=r"p\.patch does not apply:(.|\n)*a\.c"):
        _apply(patch, tmp_path)


# ---------------------------------------------------------------- make


def run_make(tree: Path, rules: str, cancel: threading.Event | None = None) -> make.Progress:
    (tree / "Makefile").write_text(rules)
    return make.run(["make", "-s"], tree, tree / "log", cancel or threading.Event(), lambda _: None)


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("setpriv")), reason="needs make and setpriv")
class TestMake:
    def test_files_made_are_counted_over_all_attempts(self, tmp_path: Path) -> None:
        rules = "all:\n\t@echo '  CC      a.o'; echo 'a remark'; echo '  LD      vmlinux'\n"
        assert run_make(tmp_path, rules).steps == 2
        assert run_make(tmp_path, rules).steps == 4

    def test_a_failure_shows_the_compilers_words_not_the_files_made_since(self, tmp_path: Path) -> None:
        with pytest.raises(MachineError, match=r"a\.c:1: error: no such thing") as caught:
            run_make(tmp_path, "all:\n\t@echo 'a.c:1: error: no such thing'; echo '  CC      b.o'; exit 1\n")
        assert "b.o" not in caught.value.message
        assert str(tmp_path / "log") in caught.value.hint

    def test_a_cancellation_leaves_no_process(self, tmp_path: Path) -> None:
        cancel = threading.Event()
        pid = tmp_path / "pid"

        def stop_once_started() -> None:
            while not (pid.exists() and pid.read_text().strip()):
                time.sleep(0.01)
            cancel.set()

        watcher = threading.Thread(target=stop_once_started)
        watcher.start()
        with pytest.raises(Cancelled):
            run_make(tmp_path, f"all:\n\t@echo $$$$ > {pid}; exec sleep 60\n", cancel)
        watcher.join()
        assert has_ended(int(pid.read_text()))

    def test_settings_of_the_callers_own_builds_do_not_reach_it(self) -> None:
        seen = make.environment({"PATH": "/bin", "KCFLAGS": "-O3", "ARCH": "arm", "MAKEFLAGS": "-k"})
        assert seen["PATH"] == "/bin"
        assert not {"KCFLAGS", "ARCH", "MAKEFLAGS"} & seen.keys()


def test_lacking_tools_are_named_by_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in ("flex", "ld") else f"/bin/{tool}")
    monkeypatch.setattr(make, "HEADERS", {"/nonexistent/gelf.h": "libelf-dev"})
    assert make.lacking_packages() == ["binutils", "flex", "libelf-dev"]
