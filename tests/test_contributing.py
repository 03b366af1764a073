"""The code that CONTRIBUTING.md shows runs where it says it belongs, and does what it says."""

import json
import re
from ast import literal_eval
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch

from preflab import rules
from preflab.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, dynamics
from preflab.data import generators, schemas
from preflab.data.pairs import load_pairs
from preflab.experiments import dynamics as experiment
from preflab.methods import ipo
from preflab.weightings import Weights

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()


def shown(recipe, module):
    """What the one block of code in a recipe defines, beside what a module has."""
    (block,) = re.findall(
        r"^ *```python\n(.*?)^ *```$", TEXT.split(f"\n## {recipe}\n")[1].split("\n## ")[0], re.M | re.S
    )
    names = dict(vars(module))
    exec(dedent(block), names)
    return names


def test_the_method_of_its_recipe_has_the_gradient_of_its_loss():
    method = shown("A method", ipo)["Hinge"](beta=0.5)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
    ratios = torch.tensor([0.3, 9.0, 0.1, -4.0], dtype=torch.float64)  # the second pair is beyond the hinge
    weighted = method.weigh(ratios, mask)

    def loss(r):
        chosen, rejected = r.chunk(2)
        return torch.relu(1 - 0.5 * (chosen - rejected)).sum()

    gradient = torch.autograd.functional.jacobian(loss, ratios)
    assert torch.equal(weighted.c, -gradient[:, None] * mask)
    assert weighted.loss.sum() == loss(ratios) and weighted.margins.tolist() == pytest.approx([0.1, 6.5])


def test_the_rule_of_its_recipe_keeps_the_first_token_of_a_response():
    c = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, -0.5, -0.5]])
    kept = shown("A rule", rules)["FirstToken"]()(Weights.of_pairs(c, 0.0))
    assert kept.tolist() == [[0, 0.5, 0, 0], [0, 0, -0.5, 0]]


def test_the_schema_of_its_recipe_is_known_by_its_columns_and_its_rows_become_pairs(tmp_path, monkeypatch):
    signature = re.search(r'`"best-worst": (\(.*?\))`', TEXT)[1]
    monkeypatch.setattr(schemas, "SIGNATURES", {"best-worst": literal_eval(signature), **schemas.SIGNATURES})
    generator = shown("A source or a schema", generators)["best_worst_pairs"]
    monkeypatch.setitem(generators.GENERATORS, "best-worst", generator)
    rows = [{"question": f"q{i}", "best": f"b{i}", "worst": "w"} for i in range(40)]
    rows.append({"question": "q", "best": "same", "worst": "same"})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = load_pairs(f"files:{tmp_path / 'a.jsonl'}", "default")
    found = {pair["prompt"][0]["content"]: pair for split in (loaded.train, loaded.test) for pair in split}
    assert set(found) == {f"q{i}" for i in range(40)} and sum(loaded.report.dropped.values()) == 1
    assert all(found[f"q{i}"]["chosen"][0]["content"] == f"b{i}" for i in range(40))
    assert {pair["rejected"][0]["content"] for pair in found.values()} == {"w"}


@pytest.mark.parametrize(
    ("last", "verdict"),
    [([0.1, 0.2, 0.3], REPRODUCED), ([1.4, 1.5, 1.6], NOT_REPRODUCED), ([0.5, 1.0, 1.5], INCONCLUSIVE)],
)
def test_the_claim_of_its_recipe_has_three_verdicts(last, verdict):
    whole = np.stack([np.ones(3), last], axis=1)
    claim = shown("A claim", dynamics)["pull_fades"](dynamics.Curves(whole, *[whole] * 5, weight=whole))
    assert (claim.id, claim.verdict) == ("D13", verdict)
    assert claim.value == pytest.approx(np.mean(last) - 1)


def test_the_parameters_of_the_recipe_of_a_notebook_are_checked_and_lead_to_pairs():
    kind = shown("A notebook", experiment)["Lengths"]
    sizes = {"train_pairs": 8, "test_pairs": 8, "pairs_per_prompt": None, "max_new_tokens": 8, "seeds": [0]}
    given = {"profile": "default", "name": "x", "data": "", "revision": None, "show_texts": False, **sizes}
    p = kind.checked({**given, "source": "world:conflict", "objective": "helpful"}, "x")
    p.check_there()
    assert len(p.pairs_of(*p.sources()[0]).test_pairs.rows()) == 8
