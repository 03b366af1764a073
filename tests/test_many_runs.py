"""Many runs: what Snakemake is told of params/, and, where it is installed, what it makes of it."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from checkouts import ROOT, checkout

import targets
from preflab.errors import BadInput
from preflab.hardware import Hardware
from preflab.running.asked import asked_by, found, resolved
from preflab.running.reading import find_parameters, profiles

WORKFLOW = ROOT / "workflow"
RULES = {f"{profile}_run" for profile in profiles()}
OWN = ROOT / ".venv-cluster" / "bin" / "snakemake"  # of `make cluster`
SNAKEMAKE = str(OWN) if OWN.exists() else shutil.which("snakemake")
installed = pytest.mark.skipif(SNAKEMAKE is None, reason="Snakemake is not installed: make cluster does it")


def parameters(profile, name, threads=targets.WORKERS, data=None):
    """What the words that Snakemake gives to preflab ask for."""
    run, of, overrides = asked_by(f"preflab {targets.words(profile, name, threads, data)}")
    return resolved(*found(run, of), overrides)[1]


# --- what there is to run -------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smoke", "full"])
def test_the_seeds_of_a_run_are_those_of_its_parts(profile):
    """Each has its own place, and differs from the run in nothing else."""
    apart = {name: targets.parts(profile, name, "seed") for name in find_parameters(profile)}
    assert [name for name, parts in apart.items() if not parts] == [
        name
        for name in apart
        if name[:2] in ("00", "04")  # without seeds; with a choice that seeds make together
    ]
    for name, parts in apart.items():
        whole, some = parameters(profile, name), [parameters(profile, part) for part in parts]
        assert [each.name for each in some] == parts
        assert not parts or [each.seeds for each in some] == [[seed] for seed in whole.seeds]
        assert all(each.model_copy(update={"name": name, "seeds": whole.seeds}) == whole for each in some)


def test_the_settings_of_a_run_are_those_of_its_parts():
    name = "01_sequential_settings"
    whole = parameters("full", name)
    some = [parameters("full", part) for part in targets.parts("full", name, ["setting"])]
    assert [each.settings for each in some] == [{key: row} for key, row in whole.settings.items()]
    both = targets.parts("full", name, ["seed", "setting"])
    assert len(both) == len(whole.seeds) * len(whole.settings)
    assert both[1] == f"{name}--seed-0--setting-attributes"
    one = parameters("full", both[1])
    assert (one.seeds, list(one.settings)) == ([0], ["attributes"])


def test_every_file_of_params_has_a_target_and_sources_that_exist():
    for profile in profiles():
        for name in find_parameters(profile):
            assert all((ROOT / path).is_file() for path in targets.sources(profile, name))
            assert asked_by(f"preflab {targets.words(profile, name, 2, None)}") == (name, profile, [])


def test_a_name_of_a_setting_becomes_one_word():
    (part,) = [p for p in targets.parts("real", "01_sequential_settings", "setting") if "labels" in p]
    assert part == "01_sequential_settings--setting-two-labels"
    _, _, overrides = asked_by(f"preflab {targets.words('real', part, 2, None)}")
    assert json.loads(overrides[1].removeprefix("settings=")).keys() == {"two labels"}


def test_processes_are_as_many_as_threads_unless_the_file_says_how_many():
    assert Hardware().workers == targets.WORKERS
    assert parameters("full", "02_g_dynamics", 6).hardware.workers == 6
    assert parameters("smoke", "02_g_dynamics", 6).hardware.workers == 1


def test_data_take_the_place_of_the_files_folder():
    assert asked_by(f"preflab {targets.words('gpu', '05_mechanism', 2, 'my data')}")[2] == ['data="my data"']


def test_what_is_not_there_is_told_in_one_line():
    with pytest.raises(BadInput, match="no part seed-9, expected one of: seed-0, seed-1, "):
        targets.words("smoke", "01_sequential_settings--seed-9", 2, None)
    with pytest.raises(BadInput, match="by='sead': expected one of: seed, setting"):
        targets.parts("smoke", "01_sequential_settings", "sead")
    with pytest.raises(BadInput, match=r"params/smoke/11_none\.yaml: no such file"):
        targets.parts("smoke", "11_none", "seed")


@pytest.mark.parametrize("path", sorted(WORKFLOW.glob("profiles/*/config.yaml")), ids=lambda path: path.parent.name)
def test_a_profile_speaks_of_rules_and_files_that_are_there(path):
    profile = yaml.safe_load(path.read_text())
    assert {*profile["set-threads"], *profile.get("set-resources", {})} <= RULES
    assert profile["rerun-incomplete"] and profile["nolock"]  # so that a killed one goes on
    if "configfile" in profile:
        by = yaml.safe_load((ROOT / profile["configfile"]).read_text())["by"]
        assert targets.parts("smoke", "01_sequential_settings", by)


# --- Snakemake ------------------------------------------------------------------------------------


def start(root, *words):
    """Snakemake over the runs of a checkout, in a session of its own."""
    (root / "tmp").mkdir(exist_ok=True)
    preflab = f"preflab={sys.executable} -m preflab.running.cli"
    return subprocess.Popen(
        [SNAKEMAKE, "--snakefile", WORKFLOW / "Snakefile", "--directory", root, *words, "--config", preflab],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(root / "tmp"), "XDG_CACHE_HOME": str(root / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def said(process):
    return process.communicate(timeout=1800)[0]


@installed
def test_a_profile_is_every_file_of_it(tmp_path):
    text = said(start(checkout(tmp_path), "-n", "full"))
    assert re.search(rf"^full_run +{len(find_parameters('full'))}$", text, re.M), text


@installed
def test_through_slurm_a_run_waits_for_its_seeds(tmp_path):
    name, slurm = "01_sequential_settings", str(WORKFLOW / "profiles" / "slurm")
    text = said(start(checkout(tmp_path), "-n", f"results/full/{name}/metrics.json", "--workflow-profile", slurm))
    parts = targets.parts("full", name, "seed")
    assert re.search(rf"^full_run +{len(parts) + 1}$", text, re.M), text
    (inputs,) = [line for line in text.splitlines() if "input:" in line and "--seed" in line]
    assert all(path in inputs for part in parts for path in targets.outputs("full", part))


@installed
def test_a_run_that_fails_keeps_its_log_and_the_results_before_and_stops_no_other(tmp_path):
    root, names = checkout(tmp_path), ["01_sequential_settings", "02_g_dynamics"]
    for name in names:
        file = root / "params" / "mine" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("profile: mine\npairs: 3\n")
    before = root / "results" / "mine" / names[0] / "metrics.json"
    before.parent.mkdir(parents=True)
    before.write_text("{}")
    process = start(root, "mine", "--cores", "1")
    text = said(process)
    logs = [(root / "results" / "mine" / f"{name}.log").read_text() for name in names]
    assert process.returncode == 1
    assert all("pairs=3: no such parameter" in log and log.strip() in text for log in logs)
    assert before.read_text() == "{}"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@installed
@pytest.mark.parametrize("moment", range(3))
def test_killed_and_started_again_it_goes_on_to_the_same_numbers(moment, tmp_path, tmp_path_factory):
    """Snakemake alone is killed; its runs live on, and the new ones share their work."""
    name, killed = "01_sequential_settings", checkout(tmp_path)
    target = f"results/smoke/{name}/metrics.json"
    whole = checkout(tmp_path_factory.mktemp("whole"))
    began = time.monotonic()
    said(start(whole, target))
    process = start(killed, target)
    time.sleep(random.Random(moment).uniform(0.1, 0.9) * (time.monotonic() - began))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = start(killed, target)
    text = said(again)
    assert again.returncode == 0, text
    assert (killed / target).read_bytes() == (whole / target).read_bytes()
    assert not list((killed / "results" / "cache").glob("*.partial"))
