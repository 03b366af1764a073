"""The cache: built once, whole or not at all, checked on load, named by what decides its content."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import preflab.cache
from preflab.cache import Cache, code_version, digest
from preflab.errors import BadInput

KEY = {"seed": 1, "data": "abc"}


def build(folder):
    """Leaves one line beside the cache for every build."""
    with open(folder.parent.parent / "builds", "a") as file:
        file.write("built\n")
    time.sleep(0.2)
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "weights").write_bytes(b"0123456789")
    (folder / "log.json").write_text("[1, 2]")


def builds(root):
    return (root.parent / "builds").read_text().count("built") if (root.parent / "builds").exists() else 0


def build_in_a_process(root):
    Cache(root).entry("dpo", KEY, build)


def die(folder):
    (folder / "checkpoint").write_text("step 3")
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_process(root):
    Cache(root).entry("dpo", KEY, die)


def run_in_processes(function, root, n):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=function, args=(root,)) for _ in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def test_an_entry_is_built_once_and_whole(root):
    first, again = (Cache(root).entry("dpo", KEY, build) for _ in range(2))
    assert first == again and builds(root) == 1
    assert (first / "deep" / "weights").read_bytes() == b"0123456789"
    assert not list(root.glob("*.partial"))
    manifest = json.loads((first / "manifest.json").read_text())
    assert set(manifest["files"]) == {"deep/weights", "log.json"}
    assert manifest["key"].items() >= {"kind": "dpo", **KEY}.items()


def test_the_name_is_the_content(root):
    def name(kind, key):
        return Cache(root).entry(kind, key, lambda folder: None).name

    same = name("dpo", KEY)
    assert name("dpo", dict(reversed(KEY.items()))) == same and same.startswith("dpo-")
    others = [name("sft", KEY), *(name("dpo", KEY | k) for k in ({"seed": 2}, {"seed": "1"}, {"more": None}))]
    assert len({same, *others}) == 5
    assert digest({"a": [1, {"b": 2, "c": 3}]}) == digest({"a": [1, {"c": 3, "b": 2}]}) != digest({"a": [1]})


def test_other_code_or_libraries_make_another_entry(root, monkeypatch):
    names = {Cache(root).entry("dpo", KEY, build).name}
    for function, value in (("code_version", "other"), ("library_versions", {"torch": "0"})):
        with monkeypatch.context() as patch:
            patch.setattr(preflab.cache, function, lambda value=value: value)
            names.add(Cache(root).entry("dpo", KEY, build).name)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("module", "counts"),
    [(name, True) for name in ("worlds.py", "training/dpo.py", "models.py", "sequential.py", "dynamics.py")]
    + [
        (name, False) for name in ("claims/sequential.py", "evaluation.py", "cli.py", "figures/dynamics.py", "rules.py")
    ],
)
def test_code_that_decides_numbers_counts_and_presentation_does_not(module, counts, tmp_path, monkeypatch):
    package = shutil.copytree(Path(preflab.cache.__file__).parent, tmp_path / "preflab")
    monkeypatch.setattr(preflab.cache, "__file__", str(package / "cache.py"))
    before, everything = code_version.__wrapped__(), code_version.__wrapped__(frozenset())
    with open(package / module, "a") as file:
        file.write("\n# changed\n")
    assert (code_version.__wrapped__() != before) == counts
    assert code_version.__wrapped__(frozenset()) != everything  # of a run's results all of it decides


@pytest.mark.parametrize("name", ["deep/weights", "log.json"])
@pytest.mark.parametrize("fault", ["byte", "cut", "gone"])
def test_a_file_that_is_not_what_was_stored_is_named(name, fault, root):
    file = Cache(root).entry("dpo", KEY, build) / name
    content = file.read_bytes()
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] + (b"x" if fault == "byte" else b""))
    with pytest.raises(BadInput, match=rf"^cache entry .*/dpo-\w+: {name} is not .*delete the folder") as error:
        Cache(root).entry("dpo", KEY, build)
    assert "\n" not in str(error.value) and builds(root) == 1
    shutil.rmtree(file.parents[name.count("/")])
    Cache(root).entry("dpo", KEY, build)
    assert builds(root) == 2


@pytest.mark.parametrize("manifest", [None, "", "{", "{}"])
def test_a_broken_manifest_is_named(manifest, root):
    file = Cache(root).entry("dpo", KEY, build) / "manifest.json"
    file.unlink() if manifest is None else file.write_text(manifest)
    with pytest.raises(BadInput, match=r"manifest\.json is not what was stored"):
        Cache(root).entry("dpo", KEY, build)


def test_what_a_killed_process_left_is_gone_on_from_and_never_used(root):
    assert run_in_processes(die_in_a_process, root, 1) == [-signal.SIGKILL]
    (partial,) = root.glob("*.partial")
    assert (partial / "checkpoint").read_text() == "step 3"
    seen = []

    def resume(folder):
        seen.append((folder / "checkpoint").read_text())
        build(folder)

    folder = Cache(root).entry("dpo", KEY, resume)
    assert seen == ["step 3"] and folder.name + ".partial" == partial.name and not partial.exists()


def test_an_error_in_a_build_leaves_no_entry(root):
    def fail(folder):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Cache(root).entry("dpo", KEY, fail)
    assert not [p for p in root.iterdir() if p.is_dir() and p.suffix != ".partial"]
    Cache(root).entry("dpo", KEY, build)
    assert builds(root) == 1


def test_two_processes_build_an_entry_once(root):
    assert run_in_processes(build_in_a_process, root, 2) == [0, 0]
    assert builds(root) == 1


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInput, match=r"^cache .*file.*: not writable \(.*\)$"):
            Cache(root).entry("dpo", KEY, build)


def test_clearing_loses_nothing_but_time(root):
    Cache(root).entry("dpo", KEY, build)
    Cache(root).clear()
    assert not root.exists()
    Cache(root).clear()
    Cache(root).entry("dpo", KEY, build)
    assert builds(root) == 2
