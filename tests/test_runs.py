"""Runs of the command and of papermill: smoke numbers, what a run leaves, killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from checkouts import NAMES, ROOT, checkout, compare

RUN = "01_sequential_settings"
EXPECTED = ROOT / "tests" / "expected"
TRAINING = [name for name in NAMES if name != "90_benchmarks"]
JUDGING = [name for name in TRAINING if name not in ("00_start_here", "08_optimisers")]  # which make no claim
PRINTED = "printed.txt"
SMOKE = 1e-4  # measured: other kernels move no number by more than 1e-5 in float64


def preflab(root: Path, *words: str, **options) -> subprocess.Popen:
    """The command, in a checkout."""
    command = [sys.executable, "-m", "preflab.running.cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": heeds_a_closed_terminal}
    return subprocess.Popen(command, cwd=root, text=True, start_new_session=True, **pipes, **options)


def heeds_a_closed_terminal() -> None:
    """Even where these tests run under nohup, whose children do not."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def finish(process: subprocess.Popen, timeout: float = 300) -> str:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out


def metrics(root: Path, name: str = RUN, profile: str = "smoke") -> dict:
    return json.loads((root / "results" / profile / name / "metrics.json").read_text())


@pytest.mark.parametrize("name", TRAINING)
def test_a_smoke_run_ends_with_the_expected_numbers(name, smoke):
    """`make expected` writes them anew; the diff then shows what moved."""
    compare(metrics(smoke, name), json.loads((EXPECTED / f"{name}.json").read_text()), SMOKE)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Cold runs of the smoke profile by one command, one cache for all."""
    root = checkout(tmp_path_factory.mktemp("smoke"))
    (root / PRINTED).write_text(finish(preflab(root, "reproduce", "--profile", "smoke"), timeout=1200))
    return root


OWN = {"01_sequential_settings": (3, 4), "02_g_dynamics": (0, 1)}  # of the checked cells: show their settings, or sizes


@pytest.mark.parametrize("name", TRAINING)
def test_what_hangs_on_no_parameter_is_printed_as_committed(name, smoke):
    """Cells tagged nbval-check-output, all but a few. nbval executes whole notebooks: test_notebooks.py."""
    files = ROOT / "notebooks" / f"{name}.ipynb", smoke / "results" / "smoke" / name / "notebook.ipynb"
    committed, found = (checked(nbformat.read(file, as_version=4)) for file in files)
    assert [source for source, _ in found] == [source for source, _ in committed]
    same = [i for i in range(len(committed)) if i not in OWN.get(name, ())]
    assert same and [found[i] for i in same] == [committed[i] for i in same]


def checked(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Source and printed text of every cell that is tagged so."""
    tagged = [cell for cell in notebook.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    return [(cell.source, "".join(printed(output) for output in cell.outputs)) for cell in tagged]


def printed(output: nbformat.NotebookNode) -> str:
    return output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]


def test_a_run_leaves_what_the_design_names(smoke):
    folder = smoke / "results" / "smoke" / RUN
    files = {f.name for f in folder.iterdir()}
    pictures = {f for f in files if f.endswith(".png")}
    assert {"notebook.ipynb", "metrics.json", "provenance.json"} < files
    assert len(pictures) >= 5
    assert {p.replace(".png", ".json") for p in pictures} < files
    assert [c["id"] for c in metrics(smoke)["claims"]] == ["S1", "S2", "S3", "S4", "S5", "S6"]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["parameters"]["train_pairs"] == 32 and provenance["parameters"]["lora"]["rank"] == 2
    assert provenance["command"] == f"preflab run {RUN} --profile smoke" and provenance["inputs"]
    assert json.loads((folder / "outcome_map.json").read_text())["command"] == provenance["command"]
    assert len(next(iter(provenance["data"].values()))["fingerprint"]) == 64
    assert {f.name for f in (smoke / "results" / "smoke").iterdir()} == set(TRAINING)


@pytest.mark.parametrize("name", JUDGING)
def test_too_few_pairs_give_no_verdict(name, smoke):
    assert {c["verdict"][:6] for c in metrics(smoke, name)["claims"]} == {"none: "}


def test_every_claim_is_printed_without_a_verdict(smoke):
    claims = [c["id"] for name in JUDGING for c in metrics(smoke, name)["claims"]]
    printed = [line.split()[0] for line in (smoke / PRINTED).read_text().splitlines() if " none: " in line]
    assert printed == claims


def test_a_smoke_run_of_g_leaves_its_figures_and_its_parts_add_up(smoke):
    pictures = {f.stem for f in (smoke / "results" / "smoke" / "02_g_dynamics").glob("*.png")}
    assert {"six_panels", "weights", "tokens", "layers", "adam", "training", "calibration"} <= pictures
    for method, parts in metrics(smoke, "02_g_dynamics")["series"]["g"].items():
        for seed in range(2):
            whole, up, down = (parts[part][seed] for part in ("whole", "positive", "negative"))
            assert [a + b for a, b in zip(up, down, strict=True)] == pytest.approx(whole, rel=1e-3, abs=1e-5), method


def test_coordination_writes_answers_for_alpaca_eval(smoke):
    name, asked = "04_coordinated_objectives", smoke / "asked.json"
    asked.write_text('[{"instruction": "how do i fix the old lamp at home ?"}]')
    finish(preflab(smoke, "run", name, "--profile", "smoke", "-p", "alpaca_eval=files:asked.json"))
    found, folder = metrics(smoke, name), smoke / "results" / "smoke" / name
    rows = json.loads((folder / "provenance.json").read_text())["parameters"]["variants"]
    assert set(found["metrics"]["variants"]) == set(found["series"]["validation"]) == set(rows)
    assert all(len(merits) == 2 for merits in found["series"]["validation"].values())
    outputs = list(folder.glob("alpaca_eval/*/model_outputs.json"))
    assert len(outputs) == len(rows) + 1  # and the SFT model's
    assert json.loads(outputs[0].read_text())[0]["instruction"] == "how do i fix the old lamp at home ?"


def test_missing_prompts_of_alpaca_eval_are_missed_before_anything_trains(tmp_path):
    root = checkout(tmp_path)
    words = ("run", "04_coordinated_objectives", "--profile", "smoke", "-p", "alpaca_eval=files:nowhere.json")
    process = preflab(root, *words)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 2 and "nowhere.json" in told and len(told.strip().splitlines()) == 1
    assert not (root / "results" / "smoke" / "04_coordinated_objectives").exists()
    assert not (root / "results" / "cache").exists()


def entries(root: Path) -> dict[Path, int]:
    """When every finished entry of the cache was written."""
    return {f: f.stat().st_mtime_ns for f in root.glob("results/cache/*/manifest.json")}


def test_a_warm_run_ends_with_the_same_numbers_and_trains_nothing(smoke):
    before, kept = metrics(smoke), entries(smoke)
    finish(preflab(smoke, "run", RUN, "--profile", "smoke"))
    assert metrics(smoke) == before
    assert entries(smoke) == kept


def test_notebooks_share_their_plain_runs(smoke):
    """03 and 04 differ in rows and in how often G is measured; their plain PPO is the same in smoke. (That of DPO is in
    test_identity.py: here more notebooks train it.)"""
    keys = [json.loads(file.read_text()) for file in smoke.glob("results/cache/TrainingFrom*/manifest.json")]
    plain = [k["stage"] for k in keys if k["stage"]["rule"]["is"] == "Plain"]
    stages = [stage for stage in plain if "guides" in json.dumps(stage["pairs"])]
    of_ppo = [s for s in stages if s["method"].get("kl_coefficient") == 0.1 and s["loop"]["learning_rate"] == 3e-4]
    assert {s["seed"] for s in of_ppo} == {0, 1} and len(of_ppo) == 2


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGHUP], ids=lambda s: s.name)
def test_ended_and_started_again_it_ends_with_the_same_numbers(ending, smoke, tmp_path):
    """As soon as a first stage is trained, the command is killed, or its terminal is closed. Nothing is left."""
    root = checkout(tmp_path)
    process = preflab(root, "run", RUN, "--profile", "smoke", "-p", "hardware={workers: 2}")
    deadline = time.time() + 200
    while not list(root.glob("results/cache/TrainingFromPairs-*/manifest.json")) and time.time() < deadline:
        time.sleep(0.05)
    family = _family(process.pid)
    assert len(family) > 3  # the command, its kernel, two workers
    os.kill(process.pid, ending)
    process.communicate(timeout=60)
    assert process.returncode != 0
    deadline = time.time() + 30
    while (left := [pid for pid in family if _runs(pid)]) and time.time() < deadline:
        time.sleep(0.2)
    assert not left
    assert not (root / "results" / "smoke" / RUN).exists()
    kept = entries(root)
    assert kept
    finish(preflab(root, "run", RUN, "--profile", "smoke"))
    assert metrics(root) == metrics(smoke)
    assert kept.items() <= entries(root).items()
    assert {f.name for f in (root / "results" / "smoke").iterdir()} == {RUN}


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-p", "learnin_rate", "0.1"), "learnin_rate=0.1: no such parameter"),
        (("-p", "seeds", "[0, 1]"), "seeds='[0, 1]'"),
        (("-p", "seeds", "[0, 1]"), "papermill -p gives text; write -y"),
    ],
)
def test_plain_papermill_checks_before_anything_trains(words, message, tmp_path):
    """papermill itself runs on when a parameter is misspelt; the notebook's first cell does not."""
    root = checkout(tmp_path)
    notebook = ["notebooks/01_sequential_settings.ipynb", "out.ipynb", "--no-progress-bar"]
    command = [sys.executable, "-m", "papermill", *notebook, *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (root / "results").exists()


def test_plain_papermill_lays_sections_over_the_defaults(tmp_path):
    """papermill replaces a dictionary as a whole; what it leaves out keeps its default all the same."""
    root = checkout(tmp_path)
    notebook = ["notebooks/01_sequential_settings.ipynb", "out.ipynb", "--no-progress-bar"]
    words = ["-f", "params/smoke/01_sequential_settings.yaml", "-y", "lora: {rank: 3}"]
    subprocess.run([sys.executable, "-m", "papermill", *notebook, *words], cwd=root, check=True, capture_output=True)
    kept = json.loads((root / "results" / "smoke" / RUN / "provenance.json").read_text())["parameters"]["lora"]
    assert kept == {"rank": 3, "alpha": 16, "dropout": 0.0}
