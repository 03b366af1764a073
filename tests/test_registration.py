"""Registrations: what is written is what the rules can do, and committed results were judged by what was registered."""

import json
import subprocess

import pytest
import yaml

from preflab.claims import (
    Claim,
    ablations,
    common_mode,
    coordination,
    dynamics,
    forgetting,
    mechanism,
    objective_map,
)
from preflab.claims.registration import FOLDER, registered
from preflab.paths import project_root

RULES = {  # notebook: its rules, the effects that they are to see, and how many runs are simulated in a test
    "02_g_dynamics": (dynamics, dynamics.EFFECTS, 150),
    "03_component_ablations": (ablations, ablations.TRUE, 150),
    "04_coordinated_objectives": (coordination, coordination.TRUE, 150),
    "05_mechanism": (mechanism, mechanism.EFFECTS, 50),
    "06_forgetting_map": (forgetting, forgetting.EFFECTS, 25),  # a mixed model each
    "07_objective_map": (objective_map, objective_map.EFFECTS, 40),
    "09_common_mode": (common_mode, common_mode.EFFECTS, 150),
}
pytestmark = pytest.mark.parametrize("notebook", RULES)


def test_every_registration_is_tested(notebook):
    assert sorted(RULES) == sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_power_that_is_written_is_that_of_the_rules(notebook):
    registration, (rules, effects, runs) = registered(notebook), RULES[notebook]
    assert list(registration.claims) == list(effects)
    for name, of in registration.claims.items():
        found = rules.powers(name, registration.spread, len(registration.seeds), runs=runs)
        assert of["power"] == pytest.approx(found, abs=1.6 / runs**0.5), name  # 3.2 standard errors at worst


def test_seeds_that_decide_are_those_of_the_run_and_none_has_tuned(notebook):
    registration = registered(notebook)
    values = yaml.safe_load((project_root() / "params" / registration.profile / f"{notebook}.yaml").read_text())
    decides = "draws" if notebook == "06_forgetting_map" else "seeds"  # of worlds, or of training
    assert tuple(values[decides]) == registration.seeds
    assert not set(registration.seeds) & set(registration.tuning_seeds)
    assert tuple(values.get("tuning_seeds", registration.tuning_seeds)) == registration.tuning_seeds


def test_only_the_registered_run_has_power(notebook):
    registration = registered(notebook)
    claims = [Claim(name, "", "", 0.1, (0.0, 0.2), "inconclusive") for name in RULES[notebook][1]]
    judged = registration.judged(claims, registration.profile, list(registration.seeds))
    assert [c.power for c in judged] == [min(registration.claims[c.id]["power"].values()) for c in claims]
    for profile, seeds in (("default", registration.seeds), (registration.profile, registration.seeds[:-1])):
        others = registration.judged(claims, profile, seeds)
        assert {claim.power for claim in others} == {None}
        on = f"{len(seeds)} seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        assert {claim.verdict for claim in others} == {f"inconclusive on {on}"}
    assert registration.judged(claims, "default", [7])[0].verdict == "inconclusive on 1 seed"
    withheld = Claim("D7", "", "", 0.1, None, "none: 48 prompts, 50 needed")
    assert registration.judged([withheld], "default", [7]) == [withheld]


def test_committed_results_were_judged_by_what_was_registered_before(notebook):
    """The hash in metrics.json is this file's, and the file is in the history of the commit that ran."""
    folder = project_root() / "figures" / registered(notebook).profile / notebook
    if not folder.exists():
        pytest.skip("no committed run in the profile that decides")
    metrics = json.loads((folder / "metrics.json").read_text())
    if "registration" not in metrics["metrics"]:
        pytest.skip("the committed run is older than the registration")
    assert metrics["metrics"]["registration"] == registered(notebook).sha256
    commit = json.loads((folder / "provenance.json").read_text())["git"]["commit"]
    path = (FOLDER / f"{notebook}.yaml").relative_to(project_root())
    there = subprocess.run(
        ["git", "-C", str(project_root()), "show", f"{commit}:{path}"], capture_output=True, check=False
    )
    if there.returncode:
        pytest.skip("no history here")
    assert there.stdout == (FOLDER / f"{notebook}.yaml").read_bytes()
