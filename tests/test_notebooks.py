"""The committed notebooks as a reader meets them: run from cold by nbval, with their own parameters."""

import json
import re
import subprocess
import sys

import nbformat
import pytest
from checkouts import NAMES, ROOT, SOLUTIONS, checkout, compare


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    """One `make reproduce`: results and cache are empty at first, then shared by the notebooks in their order."""
    return checkout(tmp_path_factory.mktemp("cold"))


# Measured: default runs in float32, with torch's, MKL's and oneDNN's kernels held to AVX2 against the widest ones.
# What is likelihood alone (all of 01's margins) moved by at most 8.4e-5. Training on a policy's own samples is
# another matter: one token drawn otherwise, and a run is another run, so nothing of PPO and GRPO is compared here.
# Those are compared in the smoke profile, in float64 (test_runs.py).
LIKELIHOOD = 1e-3
LIKELIHOODS = {
    "00_start_here": r"^/(metrics|series)/",
    "01_sequential_settings": r"^/(metrics/(compatibility|outcomes|transitions)|series)/",
    "02_g_dynamics": r"^/(metrics/reward|series/(progress|nll/dpo|predicted/dpo|changed/dpo|cosine/dpo|g/dpo))",
    "03_component_ablations": r"^/series/(log_probs|accuracy)/DPO",
    "04_coordinated_objectives": r"^/series/share/",
    "05_mechanism": r"^/(metrics/(outcomes|losses)|series/(steps|losses))",
    "06_forgetting_map": r"^/series/fates/(gain|share)/",
    "08_optimisers": r"^/series/(nll|loss|length)/",
    "09_common_mode": r"^/series/panels/dpo/[^/]+/generator/(S|C|surprise)/\d+/[01]$",
    "90_benchmarks": r"^/metrics/g/one forward-mode pass",
}


WHOLE = ("00_start_here", "01_sequential_settings")  # all of them take half an hour
SOLVED = ("00_start_here_solutions",)  # likewise


def some_of(names, cheap):
    """The names, those that are not cheap marked as no part of `make test`."""
    return [pytest.param(name, marks=[pytest.mark.soak] * (name not in cheap)) for name in names]


@pytest.mark.parametrize("name", some_of(NAMES, WHOLE))
def test_committed_notebook_runs_from_cold_to_the_same_science(name, cold):
    """nbval executes the committed notebooks with their own parameters, from an empty cache; cells tagged
    nbval-check-output must print what is committed. The science is compared as numbers."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=900"]
    command += ["-q", "-p", "no:cacheprovider", f"notebooks/{name}.ipynb"]
    done = subprocess.run(command, cwd=cold, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    found = json.loads((cold / "results" / "default" / name / "metrics.json").read_text())
    committed = json.loads((ROOT / "figures" / "default" / name / "metrics.json").read_text())
    assert [c["id"] for c in found["claims"]] == [c["id"] for c in committed["claims"]]
    of_likelihoods = re.compile(LIKELIHOODS[name])
    compare(found, committed, LIKELIHOOD, lambda path: bool(of_likelihoods.search(path)))


@pytest.mark.parametrize("name", some_of(SOLUTIONS, SOLVED))
def test_solutions_say_from_cold_what_is_committed(name, cold):
    """All that their cells print: words exactly, and numbers up to one unit of their last digit."""
    file = f"notebooks/solutions/{name}.ipynb"
    command = [sys.executable, "-m", "preflab.running.cli", "render", name]
    done = subprocess.run(command, cwd=cold, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found, committed = printed(cold / file), printed(ROOT / file)
    assert len(found) == len(committed)
    assert not [(ours, theirs) for ours, theirs in zip(found, committed, strict=True) if not alike(ours, theirs)]


def printed(file):
    """The words of all outputs but pictures."""
    outputs = [output for cell in nbformat.read(file, as_version=4).cells for output in cell.get("outputs", [])]
    texts = [output.get("text") or output.data["text/plain"] for output in outputs]
    return " ".join(text for text in texts if not text.startswith("<Figure")).split()


def alike(ours, theirs):
    if ours == theirs or not all(re.fullmatch(r"[-+]?\d+(\.\d+)?", word) for word in (ours, theirs)):
        return ours == theirs
    return abs(float(ours) - float(theirs)) < 1.01 * 10 ** -len(theirs.partition(".")[2])


@pytest.mark.parametrize(("ours", "theirs", "same"), [
    ("True", "True", True), ("True", "False", False), ("0.30", "0.31", True), ("-0.00", "0.00", True),
    ("0.30", "0.32", False), ("0.0031", "0.0041", False), ("53", "54", True), ("53", "55", False), ("0.3", "x", False),
])  # fmt: skip
def test_what_solutions_print_is_compared_to_its_last_digit(ours, theirs, same):
    assert alike(ours, theirs) == same
