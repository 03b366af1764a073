"""Notebook 00: what its class refuses, the lines that it shows, its figures, its exercises and their solutions."""

import re
from types import SimpleNamespace

import jupytext
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from checkouts import ROOT
from torch.autograd import forward_ad
from torch.func import functional_call

from preflab.alignment import nll_gradient, parameters_of, token_alignment
from preflab.attention import written_out
from preflab.errors import BadInput
from preflab.figures import start_here as plots
from preflab.likelihood import collate, token_log_probs
from preflab.methods.dpo import DPO
from preflab.running.reading import defaults, resolve

SOURCE = ROOT / "notebooks" / "src" / "00_start_here.py"
CELLS = jupytext.read(SOURCE).cells


def shown(words, names):
    """Runs the code cell that has these words, up to what it does with its functions."""
    (code,) = [cell.source for cell in CELLS if cell.cell_type == "code" and words in cell.source]
    exec(code.partition("\n\n\n")[0], names)
    return names


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "words"), [
    ({"objectives": ["helpful", "verbosity"]}, "verbosity"),
    ({"objectives": ["helpful"]}, "objectives=.*at least 2 items"),
    ({"world": "guide-conflict"}, "world='guide-conflict': expected a world of short answers"),
    ({"world": "nowhere"}, "nowhere"),
    ({"base": {"model": "models/smollm2"}}, "base.model='models/smollm2': expected 'tiny'"),
])  # fmt: skip
def test_what_00_cannot_do_is_refused_before_anything_trains(values, words):
    with pytest.raises(BadInput, match=words):
        resolve(SOURCE, values, "x")


def test_both_objectives_are_of_the_world_that_is_named():
    p = resolve(SOURCE, {"train_pairs": 24, "test_pairs": 9}, "x")
    for objective in p.objectives:
        loaded = p.pairs_of(objective).load(p.seed)
        assert (loaded.report.objective, len(loaded.train), len(loaded.test)) == (objective, 24, 9)


# --- the lines that are the point -----------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_the_lines_of_00_are_the_librarys(architecture, make_model, make_rows, tokenizer, exact_norm):
    policy, rows = make_model(architecture), make_rows(3)
    batch = collate(rows, tokenizer.pad_token_id, policy.device)
    mask = batch["completion_mask"][:, 1:]
    names = {"torch": torch, "P": SimpleNamespace(dpo=DPO(0.3))}
    log_probs = shown("def log_probs_of", names)["log_probs_of"](policy, batch)
    torch.testing.assert_close(log_probs, token_log_probs(policy, batch))
    reference = log_probs.detach().sum(1) - torch.tensor([-9.0, 4, 0, 3, 2, -5])  # as if it had moved
    c = shown("def dpo_weights", names)["dpo_weights"](log_probs, reference, mask)
    torch.testing.assert_close(c, DPO(0.3).weigh(log_probs.sum(1) - reference, mask).c)
    assert (c[:3] >= 0).all() and (c[3:] <= 0).all() and len(c.unique()) == 7

    parameters = parameters_of(policy)
    v = nll_gradient(policy, [batch], parameters)
    names |= {"forward_ad": forward_ad, "functional_call": functional_call, "written_out": written_out}
    names |= {"policy": policy, "batch": batch, "parameters": parameters, "v": v, "c": c}
    found = shown("forward_ad.make_dual", names)
    s = token_alignment(policy, batch, v)
    torch.testing.assert_close(found["s"], s)
    torch.testing.assert_close(found["G"], -c * s)


def test_a_step_of_00_goes_down_the_gradient():
    policy = torch.nn.Linear(3, 1, bias=False).double()
    before, x = policy.weight.detach().clone(), torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    shown("def step", {"torch": torch})["step"](policy, policy(x).sum(), eta=0.1)
    torch.testing.assert_close(policy.weight.detach(), before - 0.1 * x[None])


# --- figures --------------------------------------------------------------------------------------


def test_bars_are_g_and_points_are_what_happened():
    panels = {"chosen": (["a", "b", "c"], np.array([1.0, -2, 0]), np.array([1.1, -1.9, 0])), "rejected": (["d"],) * 3}
    panels["rejected"] = (["d"], np.array([3.0]), np.array([2.9]))
    one, other = plots.pulls(panels).axes
    assert [bar.get_width() for bar in one.patches] == [1, -2, 0] and [bar.get_width() for bar in other.patches] == [3]
    assert [line.get_xdata().tolist() for line in one.lines[1:]] == [[1.1, -1.9, 0]]
    assert [label.get_text() for label in one.get_yticklabels()] == ["a", "b", "c"]
    colours = [bar.get_facecolor()[:3] for bar in one.patches]
    assert colours[0] != colours[1] == colours[2]
    assert one.get_ylim() == other.get_ylim() == (2.6, -0.6)  # the first token stands at the top


def test_forgetting_is_drawn_as_means_with_their_names_at_the_end():
    margins = {"helpful": np.array([[0, 2.0], [4, 6], [1, 1]]), "harmless": np.array([[0, 0.0], [-2, -4], [5, 7]])}
    (axis,) = plots.forgetting(np.array([0, 4, 8]), margins, boundary=4).axes
    assert [line.get_ydata().tolist() for line in axis.lines[1:]] == [[1, 5, 1], [0, -3, 6]]
    texts = {text.get_text().strip(): text for text in axis.texts}
    assert texts["helpful"].xy == (8, 1) and texts["harmless"].xy == (8, 6)
    assert texts["Stage 2: harmless"].get_position()[0] == 4


# --- exercises ------------------------------------------------------------------------------------


def test_the_values_that_an_exercise_gives_are_possible():
    text = " ".join(CELLS[-1].source.split())
    (world,), (objectives,) = (
        re.findall(r'`world: str = "(\w+)"`', text),
        re.findall(r"`objectives: list = (.*?)`", text),
    )
    p = resolve(SOURCE, {"world": world, "objectives": re.findall(r"\w+", objectives)}, "x")
    assert p.changed(defaults(SOURCE)) == ["world", "objectives"]


SOLUTIONS = sorted((SOURCE.parent / "solutions").glob("*.py"))


@pytest.mark.parametrize("solutions", SOLUTIONS, ids=[path.stem for path in SOLUTIONS])
def test_every_exercise_has_its_solution_and_the_exercises_say_where(solutions):
    of = jupytext.read(SOURCE.with_name(f"{solutions.stem.removesuffix('_solutions')}.py")).cells[-1].source
    solved = "\n".join(cell.source for cell in jupytext.read(solutions).cells if cell.cell_type == "markdown")
    asked = re.findall(r"^(\d)\. \*\*(.*?)\.?\*\*", of, re.M)
    assert asked and re.findall(r"^## (\d) · (.*)$", solved, re.M) == asked
    assert f"](solutions/{solutions.stem}.ipynb)" in of
