"""Gates: each by hand, met and not, and what they do to a run."""

from types import SimpleNamespace

import numpy as np
import pytest

from preflab.errors import BadInput
from preflab.experiments.g_dynamics import GDynamics, order_learnt
from preflab.gates import Gate, Run, commonest, gates, halfway, precise
from preflab.paths import project_root
from preflab.running.reading import defaults

TEXTS = [f"answer {i}" for i in range(10)]
GOOD = dict(
    progress=np.array([0.0, 0.2, 0.6, 1.0]),
    nll=np.array([14.0, 13.0, 11.0, 10.0]),  # 1, 3 and 4 of 4 nats: half of them at 0.4
    g=np.array([1.0, 1.0, -1.0, 1.0]),
    noise=np.array([0.2, 0.2, 0.2, 0.3]),
    greedy=TEXTS,
    kl=0.1,
    well_formed=0.97,
)


def found(entropy=22.0, reward=0.70, implicit=0.72, **other):
    return gates([Run(**GOOD), Run(**GOOD | other)], entropy, reward, implicit)


def test_all_gates_are_met_and_say_what_was_measured():
    table = found()
    assert all(gate.met for gate in table)
    values = [0.1, 22.0, 0.4, 0.75, 0.1, 0.97, 0.02]
    assert [gate.measured for gate in table] == pytest.approx(values)
    assert [gate.needed for gate in table][2:4] == ["0.25 to 0.6 of training", "at least 0.625"]


@pytest.mark.parametrize(
    ("change", "shut"),
    [
        ({"greedy": ["yes ."] * 3 + TEXTS[:7]}, "commonest greedy response"),
        ({"entropy": 19.0}, "entropy of the SFT model, nats a response"),
        ({"nll": np.array([14.0, 11.0, 10.0, 10.0])}, "half of the drop of NLL(D')"),
        ({"nll": np.array([14.0, 14.0, 14.0, 10.0])}, "half of the drop of NLL(D')"),
        ({"nll": np.array([14.0, 14.0, 14.0, 15.0])}, "half of the drop of NLL(D')"),
        ({"noise": np.array([0.3, 0.3, 0.2, 0.2])}, "checkpoints where G is precise"),
        ({"kl": 0.2}, "KL at the end, nats a token"),
        ({"well_formed": 0.9}, "well-formed at the end"),
        ({"reward": 0.68}, "reward model behind DPO, accuracy"),
    ],
)
def test_each_gate_shuts_for_the_worst_run_alone(change, shut):
    assert [gate.name for gate in found(**change) if not gate.met] == [shut]


def test_without_an_oracle_or_a_reward_model_there_is_no_such_gate():
    plain = Run(**GOOD | {"well_formed": None})
    names = [gate.name for gate in gates([plain], 22.0, None, None)]
    assert len(names) == 5 and not any("well-formed" in name or "reward" in name for name in names)


def test_parts_by_hand():
    assert commonest(["a", "b", "a", "c"]) == 0.5
    assert halfway(np.array([0.0, 0.5, 1.0]), np.array([4.0, 3.0, 2.0])) == pytest.approx(0.5)
    assert halfway(np.array([0.0, 0.2, 0.4, 1.0]), np.array([4.0, 2.0, 4.0, 0.0])) == pytest.approx(0.7)  # for good
    assert precise(np.array([2.0, 0.0]), np.array([0.35, 0.36])) == 0.5  # a quarter of sqrt(2) is 0.354


def parameters(**given):
    values = defaults(project_root() / "notebooks" / "src" / "02_g_dynamics.py")
    return GDynamics.checked({**values, **given}, "test")


def test_a_gate_that_is_shut_stops_the_run_unless_told_otherwise():
    shut = [Gate("a", 0.1, "at most 0.2", True), Gate("b", 0.31, "at most 0.2", False)]
    with pytest.raises(BadInput, match=r"^gates: b 0\.31, needed at most 0\.2; beyond_gates: true runs"):
        parameters().check_gates(shut)
    parameters().check_gates(shut[:1])
    parameters(beyond_gates=True).check_gates(shut)


def test_seeds_that_tuned_decide_nothing():
    with pytest.raises(BadInput, match=r"tuning_seeds=\[1, 100\]: expected none of the seeds that decide, \[1\]"):
        parameters(seeds=[0, 1], tuning_seeds=[1, 100])


def test_what_a_run_has_learnt_is_the_change_from_its_start_to_its_end():
    start, middle, end = ([[0, 0, 0, 0], [0, 0, 0, 1]], [[9, 9, 9, 9], [0, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 1, 0]])
    found = SimpleNamespace(held_out=np.array([start, middle, end], dtype=float))
    assert order_learnt(found) == 0.75  # the last pair's rejected response has lost
