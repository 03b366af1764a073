"""The committed notebooks as a reader meets them: run from cold by nbval, with their own parameters."""

import json
import re
import subprocess
import sys

import pytest
from checkouts import NAMES, ROOT, checkout, compare


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


WHOLE = ("01_sequential_settings", "90_benchmarks")  # `make test` would take half an hour with all of them


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.soak] * (n not in WHOLE)) for n in NAMES])
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
