"""The rules of notebook 09: both verdicts and the open case, what they read, and their power as registered."""

import numpy as np
import pytest

from preflab.claims.common_mode import EFFECTS, RULES, Names, common_mode_claims, seeds_of
from preflab.common_mode import PARTS, Split

NOTEBOOK = "09_common_mode"
NAMES = Names("own", "cold", "hot", "sft", "data", "greedy")
AROUND = np.array([-0.1, 0.0, 0.1])


def verdicts(**numbers):
    claims = common_mode_claims({name: AROUND + numbers.get(name, 0.0) for name in RULES})
    return {claim.id: claim.verdict for claim in claims}


def test_each_rule_can_say_yes_and_no_and_stay_open():
    """With the effects that are registered; a share around 0 leaves a rule of a sign open."""
    yes, no = (verdicts(**{name: effects[i] for name, effects in EFFECTS.items()}) for i in (0, 1))
    assert set(yes.values()) == {"reproduced"}
    assert {name for name, verdict in no.items() if verdict == "not reproduced"} >= {"M1", "M2", "M3", "M4", "M6"}
    assert no["M5"] == "not reproduced"
    around = verdicts(M1=1.0, M5=0.5)
    assert set(around.values()) == {"inconclusive"}


def split(step, source, final="greedy", positive=0.0, negative=0.0, samples=0.0, ratio=0.0):
    """A measurement without noise but for a little in the samples part."""
    parts = dict(zip(PARTS, (positive, negative, samples, ratio), strict=True))
    units = np.array([[parts[name]] * 4 for name in PARTS])
    units[2] += [-0.2, 0.2, -0.2, 0.2]
    return Split(step, source, final, 0.0, 0.0, 0.0, np.stack([units, units]))


def test_what_the_rules_read():
    """C = 2: of own samples 0.5, of sharper ones 1 of 2, of hotter ones -2 of 2 + 4 and so on, by hand."""
    dpo = [
        split(0, "own", samples=0.2, positive=4),
        split(0, "cold", samples=2, positive=4),  # samples 1, weights 1
        split(0, "hot", samples=-4, positive=4),  # -2 of 2 + 4
        split(5, "sft", samples=-2, positive=2),  # -1 of 1 + 2
        split(0, "data", samples=8, positive=8),
        split(5, "data", samples=-2, positive=0),  # -1 of 1 + 1
        split(0, "cold", final="other", samples=-99, positive=4),
    ]
    ppo = [
        split(0, "own", samples=-0.2, positive=4),
        split(0, "cold", samples=4, positive=4),  # 2 of 2
        split(0, "hot", samples=-2, positive=-2),  # -1 of 1
        split(7, "sft", samples=-6, ratio=4, positive=0),  # -3 of 3 + 2 + 1; -1 of 5 left
    ]
    found = seeds_of({"dpo": [dpo], "ppo": [ppo]}, NAMES)
    assert {name: values.tolist() for name, values in found.items()} == {
        "M1": [pytest.approx(0)],
        "M2": [pytest.approx((0.5 + 1) / 2)],
        "M3": [pytest.approx((-1 / 3 - 1) / 2)],
        "M4": [pytest.approx((-1 / 3 - 0.5) / 2)],
        "M5": [pytest.approx(-1 / 5)],
        "M6": [pytest.approx(-0.5)],
    }


def test_own_samples_are_told_in_standard_errors():
    run = [split(0, name, samples=0.4) for name in ("own", "cold", "hot", "sft", "data")]
    expected = 0.2 / (np.std([-0.1, 0.1, -0.1, 0.1], ddof=1) / 2)
    assert seeds_of({"dpo": [run], "ppo": [run]}, NAMES)["M1"] == pytest.approx([expected])
