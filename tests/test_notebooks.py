"""The notebooks as a reader meets them: run from cold by nbval, by papermill, killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preflab.paths import project_root

ROOT = project_root()
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
RUN = "01_sequential_settings"


def environment(results: Path) -> dict[str, str]:
    return {**os.environ, "PREFLAB_RESULTS": str(results), "JUPYTER_PLATFORM_DIRS": "1"}


def numbers(value, path=""):
    """Every number in a JSON value, by its path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in numbers(inner, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in numbers(inner, f"{path}/{i}").items()}
    return {path: value} if isinstance(value, (int, float)) and not isinstance(value, bool) else {}


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    """Results and cache of one `make reproduce`: empty at first, then shared by the notebooks in their order."""
    return tmp_path_factory.mktemp("cold")


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_runs_from_cold_to_the_same_science(name, cold):
    """nbval executes the committed notebooks with their own parameters, from an empty cache; cells tagged
    nbval-check-output must print what is committed. The science is compared as numbers: a few hundred
    float32 Adam steps differ between CPUs, so a statistic may move as two independent runs would: by the width of
    its 95 % interval in 1 case of 200."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-cell-timeout=900",
    ]
    command += ["-q", "-p", "no:cacheprovider", f"notebooks/{name}.ipynb"]
    done = subprocess.run(command, cwd=ROOT, env=environment(cold), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    found = json.loads((cold / "default" / name / "metrics.json").read_text())
    committed = json.loads((ROOT / "figures" / "default" / name / "metrics.json").read_text())
    assert [c["id"] for c in found["claims"]] == [c["id"] for c in committed["claims"]]
    ours, theirs = (numbers(x["metrics"].get("outcomes", {})) for x in (found, committed))
    assert set(ours) == set(theirs)
    for path, value in theirs.items():
        if path.endswith("/value"):
            low, high = theirs[path.replace("/value", "/low")], theirs[path.replace("/value", "/high")]
            assert ours[path] == pytest.approx(value, abs=max(0.02, high - low)), path


def preflab(results: Path, *words: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "preflab.cli", *words]
    return subprocess.Popen(command, env=environment(results), text=True, start_new_session=True, **options)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def metrics(results: Path, name: str = RUN, profile: str = "smoke") -> dict:
    return json.loads((results / profile / name / "metrics.json").read_text())


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One cold run of the smoke profile, from another working directory than the project's."""
    results = tmp_path_factory.mktemp("smoke")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": results}
    return results, finish(preflab(results, "run", RUN, "--profile", "smoke", **pipes))


def test_a_run_leaves_what_the_design_names(smoke):
    results, printed = smoke
    folder = results / "smoke" / RUN
    files = {f.name for f in folder.iterdir()}
    pictures = {f for f in files if f.endswith(".png")}
    assert {"notebook.ipynb", "metrics.json", "provenance.json"} < files
    assert len(pictures) >= 5
    assert {p.replace(".png", ".json") for p in pictures} < files
    assert [c["id"] for c in metrics(results)["claims"]] == ["S1", "S2", "S3", "S4", "S5", "S6"]
    assert all(c["verdict"] in ("reproduced", "not reproduced", "inconclusive") for c in metrics(results)["claims"])
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["parameters"]["train_pairs"] == 32
    assert len(next(iter(provenance["data"].values()))["fingerprint"]) == 64
    assert "S1" in printed
    assert {f.name for f in (results / "smoke").iterdir()} == {RUN}


def test_a_smoke_run_of_g_leaves_its_claims_figures_and_numbers(tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
    finish(preflab(tmp_path, "run", "02_g_dynamics", "--profile", "smoke", **pipes))
    found = metrics(tmp_path, "02_g_dynamics")
    assert [c["id"] for c in found["claims"]] == ["D1", "D2", "D3", "D4", "D5", "D6"]
    pictures = {f.stem for f in (tmp_path / "smoke" / "02_g_dynamics").glob("*.png")}
    assert pictures == {"six_panels", "weights", "tokens", "layers", "adam", "training", "calibration"}
    for method, parts in found["series"]["g"].items():
        for seed in range(2):
            whole, up, down = (parts[part][seed] for part in ("whole", "positive", "negative"))
            assert [a + b for a, b in zip(up, down, strict=True)] == pytest.approx(whole, rel=1e-3, abs=1e-5), method


def test_a_smoke_run_of_coordination_leaves_its_claims_figures_and_numbers(tmp_path):
    name, pipes = "04_coordinated_objectives", {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
    asked = tmp_path / "alpaca_eval.json"
    asked.write_text('[{"instruction": "how do i fix the old lamp at home ?"}]')
    printed = finish(preflab(tmp_path, "run", name, "--profile", "smoke", "-p", f"alpaca_eval=files:{asked}", **pipes))
    found = metrics(tmp_path, name)
    assert [c["id"] for c in found["claims"]] == ["D10", "D11", "D12"] and "D12" in printed
    folder = tmp_path / "smoke" / name
    assert {f.stem for f in folder.glob("*.png")} == {"forest", "pareto", "schedules"}
    rows = json.loads((folder / "provenance.json").read_text())["parameters"]["variants"]
    assert set(found["metrics"]["variants"]) == set(found["series"]["validation"]) == set(rows)
    assert all(len(merits) == 2 for merits in found["series"]["validation"].values())
    outputs = list(folder.glob("alpaca_eval/*/model_outputs.json"))
    assert len(outputs) == len(rows) + 1  # and the SFT model's
    assert json.loads(outputs[0].read_text())[0]["instruction"] == "how do i fix the old lamp at home ?"


def test_missing_prompts_of_alpaca_eval_are_missed_before_anything_trains(tmp_path):
    words = ("run", "04_coordinated_objectives", "--profile", "smoke", "-p", "alpaca_eval=files:nowhere.json")
    process = preflab(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 2 and "nowhere.json" in told and len(told.strip().splitlines()) == 1
    assert not (tmp_path / "smoke" / "04_coordinated_objectives").exists() and not (tmp_path / "cache").exists()


def test_a_warm_run_ends_with_the_same_numbers_and_trains_nothing(smoke):
    results, _ = smoke
    before = metrics(results)
    entries = {f: f.stat().st_mtime_ns for f in (results / "cache").rglob("*.safetensors")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    finish(preflab(results, "run", RUN, "--profile", "smoke", **pipes))
    assert metrics(results) == before
    assert {f: f.stat().st_mtime_ns for f in (results / "cache").rglob("*.safetensors")} == entries


def test_killed_and_started_again_it_ends_with_the_same_numbers(smoke, tmp_path):
    """SIGKILL to the whole process group as soon as a first stage is trained."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = preflab(tmp_path, "run", RUN, "--profile", "smoke", **pipes)
    deadline = time.time() + 200
    while not list(tmp_path.glob("cache/stage-*/manifest.json")) and time.time() < deadline:
        time.sleep(0.05)
    for pid in _family(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "smoke" / RUN).exists()
    stages = {f: f.stat().st_mtime_ns for f in tmp_path.glob("cache/stage-*/manifest.json")}
    assert stages
    finish(preflab(tmp_path, "run", RUN, "--profile", "smoke", **pipes))
    assert metrics(tmp_path) == metrics(smoke[0])
    assert all(f.stat().st_mtime_ns == at for f, at in stages.items())


def _family(pid: int) -> list[int]:
    """A process and all its descendants: the kernel has a process group of its own."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for child, parent in (map(int, line.split()) for line in listing.splitlines()):
        children.setdefault(parent, []).append(child)
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def test_plain_papermill_checks_names_before_anything_trains(tmp_path):
    """papermill itself runs on when a parameter is misspelt; the notebook's first cell does not."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / f"{RUN}.ipynb"),
        str(tmp_path / "out.ipynb"),
    ]
    command += ["--no-progress-bar", "-p", "learnin_rate", "0.1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode != 0
    assert "learnin_rate=0.1: no such parameter" in done.stderr
    assert not (tmp_path / "cache").exists()
