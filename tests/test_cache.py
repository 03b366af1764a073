"""The cache: built once, whole or not at all, named by what decides its content, compared when it is loaded."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import dataclass, replace

import pytest
from typer.testing import CliRunner

from preflab import paths
from preflab.errors import BadInput
from preflab.running import cache as module
from preflab.running import identity as identities
from preflab.running.cache import Cache
from preflab.running.cli import app
from preflab.running.identity import identity, key
from preflab.stages.stage import Stage, keep_in, store


@dataclass(frozen=True)
class Weights(Stage):
    """Leaves one line beside the cache for every build."""

    seed: int = 1
    data: str = "abc"

    def build(self, folder):
        build(folder)


Weights.__module__, Weights.__qualname__ = Stage.__module__, Stage.__qualname__  # the code that counts is Stage's
STAGE = Weights()


def build(folder):
    with open(folder.parent.parent / "builds", "a") as file:
        file.write("built\n")
    time.sleep(0.2)
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "weights").write_bytes(b"0123456789")
    (folder / "log.json").write_text("[1, 2]")


def builds(root):
    return (root.parent / "builds").read_text().count("built") if (root.parent / "builds").exists() else 0


def build_in_a_process(root):
    Cache(root).folder(STAGE)


def die(folder):
    (folder / "checkpoint").write_text("step 3")
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_process(root):
    Cache(root).deposit(STAGE, die)


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
    first, again = (Cache(root).folder(STAGE) for _ in range(2))
    assert first == again == Cache(root).path(STAGE) and builds(root) == 1
    assert (first / "deep" / "weights").read_bytes() == b"0123456789"
    assert not list(root.glob("*.partial"))
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["files"]["deep/weights"] == {
        "size": 10,
        "sha256": "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882",
    }
    assert set(manifest["files"]) == {"deep/weights", "log.json"}
    assert {k: manifest[k] for k in ("stage", "versions")} == key(STAGE)
    assert manifest["stage"].items() >= {"is": "Weights", "seed": 1, "data": "abc"}.items()


def test_a_cache_holds_what_is_finished_alone(root):
    cache = Cache(root)
    assert not cache.holds(STAGE)
    cache.path(STAGE).with_name(f"{cache.path(STAGE).name}.partial").mkdir(parents=True)
    assert not cache.holds(STAGE)
    cache.folder(STAGE)
    assert cache.holds(STAGE) and not cache.holds(replace(STAGE, seed=2))


def test_the_name_is_the_kind_and_the_identity(root):
    assert Cache(root).folder(STAGE).name == f"Weights-{identity(STAGE)}"
    stages = [STAGE, replace(STAGE, seed=2), replace(STAGE, data="abd"), replace(STAGE, data="1")]
    assert len({Cache(root).folder(stage).name for stage in stages}) == 4 == builds(root)


def test_other_code_or_libraries_make_another_entry(root, monkeypatch):
    names = {Cache(root).folder(STAGE).name}
    for function, value in (("code_of", "other"), ("library_versions", {"torch": "0"})):
        with monkeypatch.context() as patch:
            patch.setattr(identities, function, lambda *_, value=value: value)
            identity.cache_clear()
            names.add(Cache(root).folder(STAGE).name)
    identity.cache_clear()
    assert len(names) == 3 == builds(root)


@pytest.mark.parametrize("name", ["deep/weights", "log.json"])
@pytest.mark.parametrize("fault", ["longer", "cut", "gone"])
def test_a_file_that_is_gone_or_of_another_size_is_named_when_it_is_loaded(name, fault, root):
    file = Cache(root).folder(STAGE) / name
    content = file.read_bytes()
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes(content + b"x" if fault == "longer" else content[:-1])
    with pytest.raises(BadInput, match=rf"^cache entry .*/Weights-\w+: {name} is not .*delete the folder") as error:
        Cache(root).folder(STAGE)
    assert "\n" not in str(error.value) and builds(root) == 1
    shutil.rmtree(file.parents[name.count("/")])
    Cache(root).folder(STAGE)
    assert builds(root) == 2


@pytest.mark.parametrize("name", ["deep/weights", "log.json"])
def test_a_flipped_byte_passes_when_it_is_loaded_and_is_found_by_a_check(name, root):
    """Integrity is checked when an entry is written and when a reader asks: no gigabytes are hashed on a hot path."""
    cache = Cache(root)
    whole = cache.folder(replace(STAGE, seed=2))
    file = cache.folder(STAGE) / name
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert cache.folder(STAGE) == file.parents[name.count("/")]
    assert dict(cache.check()) == {whole: None, cache.path(STAGE): name}


def test_a_check_names_what_is_gone_broken_or_no_folder_and_leaves_unfinished_work_alone(root):
    cache = Cache(root)
    assert list(cache.check()) == []
    for seed in range(4):
        cache.folder(replace(STAGE, seed=seed))
    assert [name for _, name in cache.check()] == [None] * 4
    paths_ = [cache.path(replace(STAGE, seed=seed)) for seed in range(4)]
    (paths_[0] / "log.json").unlink()
    (paths_[1] / "manifest.json").unlink()
    (paths_[2] / "manifest.json").write_text("[]")
    shutil.rmtree(paths_[3])
    paths_[3].write_text("a file where a folder should be")
    (root / "Weights-0.partial").mkdir()
    (root / "Weights-0.partial" / "manifest.json").write_text("{}")
    assert dict(cache.check()) == dict(zip(paths_, ["log.json", *["manifest.json"] * 3], strict=True))


def test_the_command_that_checks_the_cache(root, monkeypatch):
    monkeypatch.setattr(paths, "results_root", lambda: root.parent)
    cache, runner = Cache(root), CliRunner()
    whole, broken = (cache.folder(replace(STAGE, seed=seed)) for seed in (1, 2))
    result = runner.invoke(app, ["cache", "check"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "2 entries, all as stored\n", "")
    (broken / "log.json").write_text("[1, 3]")
    result = runner.invoke(app, ["cache", "check"])
    assert result.exit_code == 2
    assert result.stdout == f"{broken.name}: log.json is not what was stored; delete the folder to rebuild it\n"
    assert result.stderr == f"error: cache {root}: 1 of 2 entries are not what was stored\n"
    assert whole.exists() and broken.exists()


def test_a_large_entry_is_loaded_without_being_read(root, monkeypatch):
    def sparse(folder):
        with open(folder / "model.safetensors", "wb") as file:
            file.truncate(10**13)  # ten terabytes: to read them would take hours

    monkeypatch.setattr(module, "_sha256", lambda path: "not computed")
    folder = Cache(root).path(STAGE)
    Cache(root).deposit(STAGE, sparse)

    def fail(path):
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(module, "_sha256", fail)
    began = time.monotonic()
    assert Cache(root).folder(STAGE) == folder and time.monotonic() - began < 1
    assert (folder / "model.safetensors").stat().st_size == 10**13


def test_a_finished_entry_of_a_read_only_cache_is_loaded_without_a_lock(root, monkeypatch):
    folder = Cache(root).folder(STAGE)
    for lock in root.glob("*.lock"):
        lock.unlink()
    before = sorted(root.rglob("*"))

    class NoLock:
        def __init__(self, path):
            pass

        def acquire(self):
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "FileLock", NoLock)
    root.chmod(0o555)
    try:
        assert Cache(root).folder(STAGE) == folder
        Cache(root).deposit(STAGE, die)
        assert dict(Cache(root).check()) == {folder: None}
        with pytest.raises(BadInput, match=rf"^cache {root}: not writable \(Read-only file system\)$"):
            Cache(root).folder(replace(STAGE, seed=2))
    finally:
        root.chmod(0o755)
    assert sorted(root.rglob("*")) == before and builds(root) == 1


def test_what_is_deposited_is_written_once_and_is_an_entry_like_any_other(root):
    cache, calls = Cache(root), []

    def write(folder):
        calls.append(folder)
        (folder / "kept").write_text(str(len(calls)))

    for _ in range(2):
        cache.deposit(STAGE, write)
    assert len(calls) == 1 and cache.holds(STAGE)
    assert (cache.folder(STAGE) / "kept").read_text() == "1" and builds(root) == 0
    assert list(cache.check()) == [(cache.path(STAGE), None)]
    other = replace(STAGE, seed=2)
    cache.folder(other)
    cache.deposit(other, write)
    assert len(calls) == 1 and not (cache.path(other) / "kept").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        "",
        "{",
        "{}",
        "[]",
        "null",
        '{"files": null}',
        '{"files": {}}',
        "[" * 100_000,
        "9" * 5000,
        '{"files": [1]}',
        '{"files": {"log.json": 6}}',
    ],
)
def test_a_broken_manifest_is_named(manifest, root):
    file = Cache(root).folder(STAGE) / "manifest.json"
    file.unlink() if manifest is None else file.write_text(manifest)
    with pytest.raises(BadInput, match=r"manifest\.json is not what was stored") as error:
        Cache(root).folder(STAGE)
    assert "\n" not in str(error.value) and builds(root) == 1


def test_a_file_where_an_entry_should_be_is_named(root):
    root.mkdir()
    Cache(root).path(STAGE).write_text("")
    with pytest.raises(BadInput, match=r"^cache entry .*: manifest\.json is not what was stored"):
        Cache(root).folder(STAGE)


def test_what_a_killed_process_left_is_gone_on_from_and_never_used(root):
    assert run_in_processes(die_in_a_process, root, 1) == [-signal.SIGKILL]
    (partial,) = root.glob("*.partial")
    assert (partial / "checkpoint").read_text() == "step 3" and not Cache(root).holds(STAGE)
    seen = []

    def resume(folder):
        seen.append((folder / "checkpoint").read_text())
        build(folder)

    Cache(root).deposit(STAGE, resume)
    folder = Cache(root).folder(STAGE)
    assert seen == ["step 3"] and folder.name + ".partial" == partial.name and not partial.exists()
    assert builds(root) == 1


def test_an_error_in_a_build_leaves_no_entry(root):
    def fail(folder):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Cache(root).deposit(STAGE, fail)
    assert not Cache(root).holds(STAGE)
    assert not [p for p in root.iterdir() if p.is_dir() and p.suffix != ".partial"]
    Cache(root).folder(STAGE)
    assert builds(root) == 1


def test_two_processes_build_an_entry_once(root):
    assert run_in_processes(build_in_a_process, root, 2) == [0, 0]
    assert builds(root) == 1


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInput, match=r"^cache .*file.*: not writable \(.*\)$"):
            Cache(root).folder(STAGE)


def test_clearing_loses_nothing_but_time(root):
    Cache(root).folder(STAGE)
    Cache(root).clear()
    assert not root.exists()
    Cache(root).clear()
    Cache(root).folder(STAGE)
    assert builds(root) == 2


def test_a_process_keeps_in_the_cache_that_it_was_told_last(root, monkeypatch):
    from preflab.stages import stage as stages

    monkeypatch.setattr(stages, "_stores", [])
    with pytest.raises(RuntimeError, match=r"no store: call keep_in\(Cache\(folder\)\) first"):
        store()
    for name in ("a", "b"):
        keep_in(Cache(root / name))
        assert store().root == root / name and STAGE.folder == Cache(root / name).path(STAGE)
    assert builds(root / "b") == 2
