"""Notebook 07: statistics over ordered pairs, a succession by hand, rules at their bounds, and what is trained."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from preflab import dyads
from preflab.alignment import parameters_of
from preflab.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, SMALLER
from preflab.claims import objective_map as claims
from preflab.claims.objective_map import Succession
from preflab.claims.registration import registered
from preflab.data.keeping import hashed
from preflab.errors import BadInput
from preflab.experiments.two_stages import Setting
from preflab.figures.objective_map import side_by_side
from preflab.geometry import Labelled
from preflab.likelihood import PairLogProbs
from preflab.methods.dpo import DPO
from preflab.models import Lora, unwrap
from preflab.paths import project_root
from preflab.running.identity import identity
from preflab.running.reading import read_yaml, resolve
from preflab.stages.gradients import FirstGradients
from preflab.stages.reference import ReferenceLogProbs
from preflab.statistics import Interval, jackknife_interval

SOURCE = project_root() / "notebooks" / "src" / "07_objective_map.py"
JUST = 1e-6
NAMES = "abcde"


def parameters(**given):
    small = {"train_pairs": 32, "test_pairs": 16, "pair_training": {"batch_size": 8}}
    return resolve(SOURCE, small | given, "test")


def rows_of(function, names=NAMES, **columns):
    """A row for each ordered pair; `function` gives the share."""
    rows = [{"own": a, "other": b, "share": function(a, b)} for a, b in permutations(names, 2)]
    return pd.DataFrame(rows).assign(**columns)


# --- ordered pairs --------------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_its_standard_error(rng):
    x = rng.normal(size=9)
    without = (x.sum() - x) / 8
    found = jackknife_interval(x.mean(), without)
    half = 2.306 * x.std(ddof=1) / 3  # Student's 97.5 % of 8 degrees of freedom
    assert [found.low, found.high] == pytest.approx([x.mean() - half, x.mean() + half], rel=1e-3)


def test_an_objective_is_left_out_with_all_its_pairs():
    size = dict(zip(NAMES, [1.0, 2.0, 3.0, 4.0, 10.0], strict=True))
    rows = rows_of(lambda own, other: size[own])
    found = dyads.over_objectives(rows, lambda some: float(some["share"].mean()))
    without = [np.mean([v for k, v in size.items() if k != left]) for left in NAMES]
    assert found == jackknife_interval(4.0, np.array(without))
    assert np.isnan(dyads.over_objectives(rows_of(lambda *_: 1.0, "abc"), lambda _: 1.0).low)


def test_intervals_over_objectives_cover_as_often_as_they_say(rng):
    """Every objective has an effect of its own, as own and as other one: pairs are no independent witnesses."""
    inside = []
    for _ in range(200):
        own, other = rng.normal(size=(2, 8))
        rows = rows_of(lambda a, b, own=own, other=other: own[int(a)] + other[int(b)], "01234567")
        found = dyads.over_objectives(rows, lambda some: float(some["share"].mean()))
        inside.append(found.low <= 0 <= found.high)
    assert 0.9 <= np.mean(inside) <= 0.99


def test_renaming_is_the_share_of_all_orders_with_as_large_a_correlation(rng):
    names = NAMES
    rows = rows_of(lambda *_: rng.normal(), names, x=rng.normal(size=20))
    table = rows.pivot(index="own", columns="other", values="x")
    measured, found = spearmanr(rows.x, rows["share"]).statistic, []
    for order in permutations(names):
        new = dict(zip(names, order, strict=True))
        renamed = [table.loc[new[a], new[b]] for a, b in zip(rows.own, rows.other, strict=True)]
        found.append(spearmanr(renamed, rows["share"]).statistic >= measured - 1e-9)
    assert dyads.by_renaming(rows, "x", "share", rng, 120) == pytest.approx(np.mean(found))  # all of them
    assert dyads.by_renaming(rows, "x", "share", rng, 119) == pytest.approx(np.mean(found), abs=0.15)  # some


def test_a_measure_without_a_relation_seldom_seems_to_have_one():
    """Objectives of their own level: a correlation over pairs taken as witnesses would find one far too often."""
    spread = {"objectives": 6, "dimensions": 3, "own": 1.0, "other": 1.0, "pair": 0.1, "seed": 0.0}
    rng = np.random.default_rng(0)
    found = [
        dyads.by_renaming(claims.simulated(claims.Truth(), spread, 1, rng), "cosine", "share", rng, 200)
        for _ in range(200)
    ]
    assert np.mean(np.array(found) <= 0.05) <= 0.09


def test_a_measure_that_some_pairs_lack_has_a_correlation_and_no_null(rng):
    rows = rows_of(lambda a, b: ord(a) - ord(b), x=np.arange(20.0))
    rows["known"] = rows["share"].where(rows.own != "a")
    found = claims.foretold(rows, {"all": "share", "some": "known"}, rng, 100)
    assert found.loc["some", "ordered pairs"] == 16
    assert found["correlation with the share"]["all"].value == pytest.approx(0.999)
    assert np.isnan(found.loc["some", "as large by renaming"]) and found.loc["all", "as large by renaming"] < 0.05
    gap = claims.better(rows, "share", "x")
    assert gap.value == pytest.approx(1 - spearmanr(rows.x, rows["share"]).statistic)


# --- what became of an objective ------------------------------------------------------------------

PAIRS = 60


def succession(own="a", other="b", **means):
    given = {"base": 0.1, "alone": 0.5, "other_alone": 0.0, "then_other": 0.2, "last": 0.4}
    slope = np.linspace(-0.01, 0.01, PAIRS)
    margins = {name: np.tile(value + slope, (1, 1)) for name, value in (given | means).items()}
    known = {"clusters": np.arange(PAIRS), "cosine": 0.3, "agreement": 0.7}
    return Succession(own, other, alone_dpo=np.ones((1, PAIRS)), **margins, **known)


def test_shares_by_hand():
    row = succession().row()
    assert row["gain"] == pytest.approx(0.4) and row["share"] == pytest.approx(-0.75)
    assert row["order"] == pytest.approx(0.5) and row["transfer"] == pytest.approx(-0.25)
    assert (row["cosine"], row["agreement"], row["outcome"]) == (0.3, 0.7, "degraded")


def test_both_objectives_of_a_pair_must_be_learnt():
    some = [succession("a", "b"), succession("b", "a"), succession("a", "c"), succession("c", "a", alone=0.05)]
    assert claims.learned(some) == ["a", "b"]
    rows = claims.table_of_successions(some)
    assert list(zip(rows.own, rows.other, strict=True)) == [("a", "b"), ("b", "a")]
    assert claims.table_of_successions([]).empty


def test_pairs_of_one_prompt_are_one_witness():
    one = replace(succession(), alone_dpo=np.where(np.arange(PAIRS) < 0.7 * PAIRS, 1.0, -1.0)[None])
    assert one.learned  # 42 of 60 pairs
    assert not replace(one, clusters=np.arange(PAIRS) // 15).learned  # of four prompts


@pytest.mark.parametrize(
    ("p", "high", "verdict"),
    [(0.025, 0.9, REPRODUCED), (0.026, 0.9, INCONCLUSIVE), (0.2, 0.5 - JUST, NOT_REPRODUCED), (0.02, 0.4, SMALLER)],
)
def test_s2_turns_where_its_rule_says(p, high, verdict, monkeypatch):
    monkeypatch.setattr(claims, "by_renaming", lambda *_: p)
    monkeypatch.setattr(claims, "correlation", lambda *_: Interval(0.3, 0.1, high))
    assert claims.goes_with_relation(pd.DataFrame()).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(JUST, 0.6, REPRODUCED), (-0.6, -JUST, REPRODUCED), (-0.25, 0.25, NOT_REPRODUCED), (-0.1, 0.3, INCONCLUSIVE)],
)
def test_s3_turns_where_its_rule_says(low, high, verdict, monkeypatch):
    monkeypatch.setattr(claims, "over_objectives", lambda *_: Interval(0.1, low, high))
    assert claims.goes_with_order(pd.DataFrame()).verdict == verdict


def test_three_objectives_leave_everything_open():
    rows = rows_of(lambda *_: 1.0, "abc", order=0.5, cosine=np.arange(6.0), outcome="degraded")
    assert {claim.verdict for claim in claims.map_claims(rows)} == {INCONCLUSIVE}
    empty = claims.map_claims(claims.table_of_successions([]))
    assert {claim.verdict for claim in empty} == {INCONCLUSIVE}


def test_more_objectives_are_tried_than_are_counted_on():
    registration = registered("07_objective_map")
    values = read_yaml(project_root() / "params" / registration.profile / "07_objective_map.yaml")
    assert len(values["objectives"]) >= registration.spread["objectives"]


# --- runs -----------------------------------------------------------------------------------------


def test_every_objective_is_trained_once_and_after_every_other_one():
    p = parameters()
    stage1 = [job.stages[0].training for job in p.phases()["Stage 1"]]
    stage2 = [job.stages[0].training for job in p.phases()["Stage 2"]]
    assert len({identity(t) for t in stage1}) == 6 and len({identity(t) for t in stage2}) == 30
    assert {identity(t.start) for t in stage2} == {identity(t) for t in stage1}


def test_stages_are_those_of_notebook_01():
    """So a cache that holds them is used, whatever stands beside an objective."""
    p = parameters()
    setting = Setting("any", ("world:conflict", "world:attributes"), ("helpful", "verbosity"))
    assert identity(p.training(setting, ("helpful",), 0)) == identity(p.evaluated(("helpful",), 0).training)
    both = p.training(setting, ("helpful", "verbosity"), 0)
    assert identity(both) == identity(p.evaluated(("helpful", "verbosity"), 0).training)


def test_stage_1_is_asked_for_every_objective_and_stage_2_for_its_two():
    p = parameters()
    assert len(p.evaluated((), 0).held_out) == len(p.evaluated(("safer",), 0).held_out) == 6
    two = p.evaluated(("safer", "helpful"), 0).held_out
    assert [pairs.of.objective for pairs in two] == ["safer", "helpful"]


def test_a_world_tells_how_far_its_objectives_agree():
    p = parameters()
    found = p.agreement()
    assert set(found) == {
        frozenset(two) for two in (("helpful", "harmless"), ("helpfulness", "verbosity"), ("safer", "better"))
    }
    relation = p.setting("helpful", "harmless").relation
    assert found[frozenset(("helpful", "harmless"))] == pytest.approx(1 - relation["disagreement"])


def test_ratings_of_the_same_answers_agree_as_counted(tmp_path):
    """Three answers to each question. By `one` they rise, by `other` the last two change places: 2 of 3 pairs agree."""
    folder = tmp_path / "rated"
    folder.mkdir()
    rows = [
        {"prompt": f"question {q} ?", "response": f"answer {q} {a} .", "one": a, "other": b}
        for q in range(60)
        for a, b in ((0, 0), (1, 2), (2, 1))
    ]
    pd.DataFrame(rows).to_json(folder / "rows.jsonl", orient="records", lines=True)
    objectives = {"first": ["files:rated", "one"], "second": ["files:rated", "other"]}
    p = parameters(objectives=objectives, data=str(tmp_path), train_pairs=8, test_pairs=8)
    assert p.agreement() == {frozenset(("first", "second")): pytest.approx(2 / 3)}


def test_gradients_at_the_base_are_those_of_the_loss(cache):
    """Inner products of the parts, against one gradient of each part of each objective's pairs."""
    p = parameters(
        objectives={"helpful": ["world:conflict", "helpful"], "harmless": ["world:conflict", "harmless"]},
        base={"hidden_size": 16, "layers": 1, "heads": 2, "sft": {"steps": 5, "batch_size": 8}},
        hardware={"dtype": "float64", "device": "cpu"},
    )
    base, lora = p.base_model, Lora(rank=2, alpha=4)
    of = [ReferenceLogProbs(base, p.source(title).train_pairs(0)) for title in p.objectives]
    stage = FirstGradients(base, lora, 0, DPO(beta=0.3), tuple(of), 4, 3)
    policy = base.fresh_policy(lora, 0, scoring=True).eval()
    weights, pad = parameters_of(policy), base.tokenizer().pad_token_id
    vectors, prompts = [], []
    for some in of:
        rows, log_probs = some.pairs.encoded(base), some.load()
        parts = [int(4 * hashed(["gradient", prompt])) for prompt in some.pairs.rows()["prompt"]]
        for part in range(4):
            own = [i for i, number in enumerate(parts) if number == part]
            kept = PairLogProbs(*(t[own] for t in vars(log_probs).values()))
            labelled = Labelled([rows[i] for i in own], kept, DPO(beta=0.3), pad)
            vectors.append(labelled.gradient(policy, weights, range(len(own)), 32)[0])
            prompts.append({str(rows[i]["prompt_ids"]) for i in own})
    unwrap(policy)
    assert not any(one & other for i, one in enumerate(prompts) for j, other in enumerate(prompts) if i % 4 != j % 4)
    wanted = torch.stack(vectors) @ torch.stack(vectors).T
    assert torch.from_numpy(stage.load()).allclose(wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"objectives": {"a": ["world:conflict", "helpful"], "b": ["world:conflict", "helpful"]}}, "different names"),
        ({"objectives": {"a": ["world:conflict", "helpful"]}}, "objectives"),
        ({"parts": 64}, "parts=64"),
        ({"parts": 5}, "parts=5"),
        ({"pair_training": {"batch_size": 64}}, "pair_training.batch_size=64"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given, says):
    with pytest.raises(BadInput) as error:
        parameters(**given)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_objectives_with_a_high_cosine_stand_side_by_side():
    near = {frozenset("ac"): 0.9, frozenset("be"): 0.8}
    cosines = np.array([near.get(frozenset((a, b)), -0.1) for a, b in permutations(NAMES, 2)])
    order = "".join(side_by_side(rows_of(lambda *_: 0.0, cosine=cosines)))
    assert sorted(order) == list("abcde") and any(two in order for two in ("ac", "ca"))
    assert any(two in order for two in ("be", "eb"))
    cosines[0] = np.nan
    assert side_by_side(rows_of(lambda *_: 0.0, cosine=cosines)) == list("abcde")
