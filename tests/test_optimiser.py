"""One update taken apart: against torch's optimisers, and against plain autograd between two snapshots of a run."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from preflab import alignment
from preflab.errors import BadInput
from preflab.experiments.optimisers import Optimisers, final_loss
from preflab.figures import optimisers as plots
from preflab.hardware import Hardware
from preflab.likelihood import collate, collate_responses, token_log_probs
from preflab.live import Live
from preflab.methods.dpo import DPO
from preflab.models import Lora
from preflab.optimiser import LINKS, RUNGS, AdamTwin, PlainTwin, agreements, chains, directions
from preflab.paths import project_root
from preflab.rules import EqualWeights
from preflab.running.cache import Cache
from preflab.running.reading import resolve
from preflab.stages import optimised
from preflab.stages.answers import AnswersStage
from preflab.stages.base import Base, BaseSettings
from preflab.stages.data import PairSource, Prompts
from preflab.stages.optimised import OptimiserSteps, TrainingWithSGD
from preflab.stages.reference import ReferenceLogProbs
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import keep_in
from preflab.stages.training import TrainingFromPairs
from preflab.training.from_pairs import PairTraining
from preflab.training.schedule import batches, lr_factor
from preflab.training.sft import SFTSettings

BASE = Base(
    BaseSettings(hidden_size=16, layers=1, heads=2, sft=SFTSettings(steps=10, batch_size=16, learning_rate=1e-2)),
    Hardware("cpu", "float64", 1),
    "answers",
)
PAIRS = PairSource("world:conflict", "helpful", None, 32, 14)
LOOP = PairTraining(learning_rate=3e-3, batch_size=8, micro_batch_size=8, max_grad_norm=0.05)  # every update is clipped
STEPS = (0, 2)
FULL = Lora(rank=0)


@pytest.fixture(autouse=True)
def store(tmp_path_factory):
    """One cache for the module: what one test trained the next may load."""
    keep_in(Cache(tmp_path_factory.getbasetemp() / "optimisers"))


def run_of(kind, rate=3e-3, lora=FULL):
    loop = replace(LOOP, learning_rate=rate)
    return kind(BASE, PAIRS.train_pairs(0), 0, lora, method=DPO(), loop=loop, order=0)


def taken_apart(training, nll="sum"):
    answers = AnswersStage(BASE, training, Prompts(PAIRS, 0, 6), 8, 0.0, 4)
    return OptimiserSteps(training, answers, STEPS, nll, 4)


def gradients(seed=0, n=4):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"a": torch.randn(3, 2, generator=generator).double(), "b": torch.randn(4, generator=generator).double()}
        for _ in range(n)
    ]


def steps_of_torch(make, given):
    """What an optimiser of torch does with these gradients, from zero: a step each."""
    parameters = {name: torch.nn.Parameter(torch.zeros_like(g)) for name, g in given[0].items()}
    optimizer, steps = make(parameters.values()), []
    for gradient in given:
        before = {name: p.detach().clone() for name, p in parameters.items()}
        for name, p in parameters.items():
            p.grad = gradient[name].clone()
        optimizer.step()
        steps.append({name: p.detach() - before[name] for name, p in parameters.items()})
    return steps


# --- twins and directions --------------------------------------------------------------------------


def test_the_twin_makes_adams_steps():
    given, twin = gradients(), AdamTwin(0.99)
    for step in steps_of_torch(lambda p: torch.optim.Adam(p, 0.1, (0.9, 0.99)), given):
        twin.take(given.pop(0))
        for name, d in twin.step().items():
            assert torch.allclose(0.1 * d, step[name], rtol=1e-9, atol=1e-12)


def test_preconditioned_own_gradient_is_adam_without_momentum():
    given, twin = gradients(), AdamTwin(0.99)
    for step in steps_of_torch(lambda p: torch.optim.Adam(p, 0.1, (0.0, 0.99)), given):
        twin.take(own := given.pop(0))
        for name, d in twin.preconditioned(own).items():
            assert torch.allclose(-0.1 * d, step[name], rtol=1e-9, atol=1e-12)


def test_plain_steps_are_as_long_as_adams_without_momentum():
    (first, own, full, moved), twin = gradients(), AdamTwin(0.99)
    twin.take(first)
    twin.take(own)
    found = directions(twin, 0.1, full, own, moved, clipped=0.5)
    length = {name: alignment.dot(d, d) ** 0.5 for name, d in found.items()}
    assert length["own batch"] == pytest.approx(length["preconditioned"], rel=1e-12)
    assert alignment.cosine(found["own batch"], own) == pytest.approx(-1)
    assert alignment.cosine(found["descent"], full) == pytest.approx(-1)
    ratio = (alignment.dot(full, full) / alignment.dot(own, own)) ** 0.5
    assert length["descent"] == pytest.approx(0.5 * ratio * length["own batch"], rel=1e-12)
    assert found["real step"] is moved


def test_plain_descent_has_neither_preconditioner_nor_momentum():
    (own, full, _, _), twin = gradients(), PlainTwin()
    twin.take(own)
    found = directions(twin, 0.1, full, own, twin.step(), clipped=1.0)
    for name, g in own.items():
        assert torch.allclose(found["own batch"][name], -0.1 * g)
        assert torch.equal(found["preconditioned"][name], -0.1 * g)
        assert torch.equal(twin.step()[name], -g)


# --- a run -----------------------------------------------------------------------------------------


def weights_at(training, steps):
    """Parameters after some updates, from the run's snapshots."""
    found = {}

    def keep(step, policy, _):
        found[step] = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}

    Snapshots(training, tuple(steps)).visit(keep)
    return found


def dpo_gradient(policy, rows, reference, indices, beta):
    """Gradient of DPO's mean loss, written again: -log sigmoid(beta (ratio of chosen - ratio of rejected))."""
    parameters = alignment.parameters_of(policy)
    batch = collate([rows[i] for i in indices], BASE.tokenizer().pad_token_id, torch.device("cpu"))
    sums = token_log_probs(policy, batch).sum(1).view(2, -1)
    ratios = sums - torch.stack([reference.chosen[indices], reference.rejected[indices]])
    loss = -F.logsigmoid(beta * (ratios[0] - ratios[1])).mean()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def by_autograd(training, update):
    """The rungs of one update, from autograd between two snapshots."""
    rows, reference = PAIRS.train_pairs(0).encoded(BASE), ReferenceLogProbs(BASE, PAIRS.train_pairs(0)).load()
    weights, beta2, found = weights_at(training, range(5)), LOOP.adam_beta2, {}
    schedule, policy = batches(32, 8, 1, 0), BASE.fresh_policy(training.lora, 0)
    parameters = alignment.parameters_of(policy)

    def at(step):
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(weights[step][name])

    def clipped(step):
        at(step)
        g = dpo_gradient(policy, rows, reference, schedule[step], training.method.beta)
        factor = min(1, LOOP.max_grad_norm / (alignment.dot(g, g) ** 0.5 + 1e-6))
        return {name: factor * x for name, x in g.items()}, factor

    history = [clipped(step)[0] for step in range(update + 1)]
    own, factor = clipped(update)
    full = dpo_gradient(policy, rows, reference, np.arange(32), training.method.beta)  # still where the update begins
    final = taken_apart(training).answers.load().final
    batch = [collate_responses(final, BASE.tokenizer().pad_token_id, torch.device("cpu"))]
    v, before = alignment.nll_gradient(policy, batch, parameters), alignment.mean_nll(policy, batch)
    eta = training.loop.learning_rate * lr_factor(update, 4, LOOP.warmup_share)
    if isinstance(training, TrainingWithSGD):
        plain = own
    else:
        square = {n: sum((1 - beta2) * beta2 ** (update - t) * g[n] ** 2 for t, g in enumerate(history)) for n in own}
        plain = {n: g / ((square[n] / (1 - beta2 ** (update + 1))).sqrt() + 1e-8) for n, g in own.items()}
    rate = eta * (alignment.dot(plain, plain) / alignment.dot(own, own)) ** 0.5
    found["descent"] = -rate * factor * alignment.dot(v, full)
    found["own batch"] = -rate * alignment.dot(v, own)
    found["preconditioned"] = -eta * alignment.dot(v, plain)
    found["real step"] = alignment.dot(v, {n: weights[update + 1][n] - weights[update][n] for n in own})
    at(update + 1)
    return found | {"exact": alignment.mean_nll(policy, batch) - before}


@pytest.mark.parametrize("kind", [TrainingFromPairs, TrainingWithSGD])
@pytest.mark.parametrize("number", [0, 1])
def test_rungs_agree_with_autograd_between_snapshots(kind, number):
    training = run_of(kind)
    found = taken_apart(training).load()
    expected = by_autograd(training, STEPS[number])
    scale = max(map(abs, expected.values()))
    for name, of_responses in zip(RUNGS, found.rungs[number], strict=True):
        assert of_responses.mean() == pytest.approx(expected[name], abs=1e-6 * scale), name


def test_links_add_up_and_a_run_is_repeated_bit_for_bit():
    for training in (run_of(TrainingFromPairs), run_of(TrainingWithSGD)):
        found = taken_apart(training).load()
        assert found.links.sum(1) == pytest.approx(found.rungs[:, -1] - found.rungs[:, 0], rel=1e-9)
        assert found.links.shape == (len(STEPS), len(LINKS), 6)
        assert found.repeated == 0
        assert found.twin_error.max() < 1e-6
        assert found.changes.shape == (4, 6)
        assert found.changes[list(STEPS)] == pytest.approx(found.rungs[:, -1])
        assert found.loss[0] == pytest.approx(np.log(2))
        assert found.loss == pytest.approx([log["loss"] for log in training.load()])


def test_the_twins_error_is_a_share_of_the_steps_length(monkeypatch, tmp_path):
    monkeypatch.setattr(optimised, "distance", lambda *_: 2.0)
    stage = taken_apart(run_of(TrainingFromPairs))
    stage.build(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(type(stage), "folder", tmp_path)
        found = stage.load()
    assert found.twin_error == pytest.approx(2 / found.length)


def test_changes_for_each_unit_of_the_rate():
    found = taken_apart(run_of(TrainingFromPairs)).load()
    assert found.factor.min() < 0.9 and found.per_rate * found.factor[:, None] == pytest.approx(found.changes)


def test_the_first_update_has_no_momentum_and_is_as_long_as_signs_are():
    training = run_of(TrainingFromPairs)
    found = taken_apart(training).load()
    link = dict(zip(LINKS, found.links[0].mean(-1), strict=True))
    assert link["momentum"] == pytest.approx(0, abs=1e-6 * abs(found.rungs[0].mean(-1)).max())
    parameters = sum(p.numel() for p in BASE.load().parameters())
    assert 0.5 < found.length[0] / (3e-3 * found.factor[0] * parameters**0.5) <= 1


def test_mean_nll_divides_by_the_tokens_of_a_response():
    training = run_of(TrainingFromPairs)
    summed, mean = taken_apart(training).load(), taken_apart(training, "mean").load()
    tokens = np.array([len(response) for _, response in taken_apart(training).answers.load().final])
    assert mean.nll == pytest.approx(summed.nll / tokens)
    assert mean.rungs == pytest.approx(summed.rungs / tokens, abs=1e-9)


def test_an_adapter_is_trained_and_taken_apart_too():
    found = taken_apart(run_of(TrainingWithSGD, rate=1.0, lora=Lora(rank=2, alpha=4))).load()
    assert found.repeated == 0 and np.isfinite(found.rungs).all() and found.twin_error.max() < 1e-6


def test_sgd_takes_no_rule():
    for other in ({"rule": EqualWeights()}, {"live": Live(1, 8, 4)}, {"updates": 2}):
        with pytest.raises(BadInput, match="training with SGD"):
            replace(run_of(TrainingWithSGD), **other)


def test_chains_take_both_orders_to_the_same_place():
    runs = [taken_apart(run_of(TrainingFromPairs)).load()] * 2
    found = chains(runs)
    one = found["batch noise"] + found["preconditioner"]
    other = found["preconditioner, whole loss"] + found["batch noise, preconditioned"]
    assert one.shape == (2, len(STEPS)) and one == pytest.approx(other)
    assert all(hits.shape == (2, len(STEPS)) for hits in agreements(found).values())
    made = {name: np.array([[1.0, -1.0]]) for name in (*RUNGS, "preconditioned whole")}
    made["exact"] = np.array([[2.0, 3.0]])
    assert agreements(made)["exact"].tolist() == [[True, False]] and agreements(made)["real step"].all()


# --- the experiment and its figures ----------------------------------------------------------------


def parameters(**given):
    return resolve(project_root() / "notebooks" / "src" / "08_optimisers.py", given, "x")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((0.69, 0.60, 0.50), 0.1), ((0.69, 0.50, 0.61), 0.3), ((0.61, 0.70, 0.70), 0.03), ((0.70, 0.70, 0.70), 0.03)],
)
def test_plain_descent_gets_the_rate_whose_final_loss_is_nearest_to_adams(losses, expected, monkeypatch):
    found = dict(zip(("SGD at 0.03", "SGD at 0.1", "SGD at 0.3"), losses, strict=True)) | {"Adam": 0.62}
    monkeypatch.setattr(Optimisers, "final_losses", lambda self: found)
    assert parameters(sgd_rates=[0.3, 0.03, 0.1]).sgd_rate() == expected


def test_the_final_loss_is_that_of_the_last_quarter():
    assert final_loss([9.0] * 6 + [1.0, 2.0]) == 1.5
    assert final_loss([3.0, 1.0]) == 1.0


def test_the_runs_of_plain_descent_differ_in_the_step_alone():
    p = parameters(seeds=[0, 1], measurement={"checkpoints": 5})
    adam, sgd = p.adam(1), p.sgd(1, 0.3)
    assert sgd.loop == replace(adam.loop, learning_rate=0.3)
    for part in ("base", "pairs", "seed", "lora", "method", "order"):
        assert getattr(sgd, part) == getattr(adam, part)
    assert [job.label for job in p.tuning_jobs()][:2] == ["Adam, seed 100", "SGD at 0.01, seed 100"]
    assert p.taken_apart(adam).steps == (0, 1, 3, 12, 39)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tuning_seeds": [0]}, "tuning_seeds"),
        ({"sgd_rates": []}, "sgd_rates"),
        ({"pair_training": {"weight_decay": 0.1}}, "pair_training.weight_decay=0.1"),
        ({"pair_training": {"batch_size": 700}}, "pair_training.batch_size=700"),
        ({"measurement": {"finals": 300}}, "measurement.finals=300"),
    ],
)
def test_bad_parameters_are_named(given, message):
    with pytest.raises(BadInput, match=message):
        parameters(**given)


def test_figures_show_every_rung_and_link():
    updates, curve = np.array([1, 2, 12]), np.linspace(-1, 1, 6).reshape(2, 3)
    some = {name: curve for name in RUNGS}
    drawn = plots.rungs(updates, {"Adam": some, "SGD": some})
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == list(RUNGS)
    drawn = plots.links({o: {link: curve[:, 0] for link in LINKS} for o in ("Adam", "SGD")})
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == list(LINKS)
    for drawn in (plots.every_update({"Adam": curve}, {"Adam": curve**2}), plots.training({"loss": {"Adam": curve}})):
        assert len(drawn.axes) == 1
    plt.close("all")
