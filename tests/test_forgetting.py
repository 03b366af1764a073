"""Notebook 06: mixed models, an objective's fate by hand, rules at their bounds, controls, order and forecast."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from preflab import mixed
from preflab.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, SMALLER, nothing
from preflab.claims import forgetting as claims
from preflab.claims.forgetting import Fate
from preflab.claims.registration import registered
from preflab.errors import BadInput
from preflab.experiments.forgetting import ARMS, CONTROLS, OBJECTIVES, foretold, orders, other_of
from preflab.figures import forgetting as plots
from preflab.methods.ipo import IPO
from preflab.paths import project_root
from preflab.running.identity import identity
from preflab.running.reading import read_yaml, resolve
from preflab.stages.data import Joined, Relabelled
from preflab.stages.training import TrainingOnTop, updates_on_pairs
from preflab.statistics import Interval

SOURCE = project_root() / "notebooks" / "src" / "06_forgetting_map.py"
JUST = 1e-6


def parameters(**given):
    small = {"train_pairs": 32, "test_pairs": 16, "pair_training": {"batch_size": 8}}
    return resolve(SOURCE, small | given, "test")


# --- mixed models ---------------------------------------------------------------------------------


def rows_of(rng, worlds, slope=0.6, level=-0.3, between=0.2, within=0.1):
    x, b = rng.uniform(-1, 1, worlds), between * rng.normal(size=worlds)
    world = np.repeat(np.arange(worlds), 2)
    y = level + slope * x[world] + b[world] + within * rng.normal(size=2 * worlds)
    return pd.DataFrame({"world": world, "x": x[world], "y": y})


def test_balanced_rows_give_the_fit_of_the_worlds_means(rng):
    """A term that is the same for both rows of a world: generalised least squares is least squares on means."""
    rows = rows_of(rng, 20)
    found = mixed.fit(rows, "y ~ x", "world")
    means = rows.groupby("world").mean()
    slope, level = np.polyfit(means.x, means.y, 1)
    assert [found.effects["x"], found.effects["Intercept"]] == pytest.approx([slope, level], abs=1e-6)
    left = means.y - slope * means.x - level
    error = np.sqrt(left @ left / 18 / ((means.x - means.x.mean()) ** 2).sum())
    assert np.sqrt(found.covariance.loc["x", "x"]) == pytest.approx(error, rel=1e-3)
    assert found.freedom == 18


def test_worlds_without_an_effect_of_their_own_are_fitted_too(rng):
    found = mixed.fit(rows_of(rng, 12, between=0.0), "y ~ x", "world")
    assert found.effects["x"] == pytest.approx(0.6, abs=0.15) and np.isfinite(found.interval("x").high)


def test_intervals_cover_as_often_as_they_say(rng):
    fits = [mixed.fit(rows_of(rng, 12), "y ~ x", "world") for _ in range(120)]
    inside = [low <= 0.6 <= high for low, high in ((i.low, i.high) for i in (f.interval("x") for f in fits))]
    crossed = [i.low <= 0.5 <= i.high for i in (f.crossing("x") for f in fits) if np.isfinite(i.low)]
    assert 0.88 <= np.mean(inside) <= 1 and 0.88 <= np.mean(crossed) <= 1


def test_a_crossing_is_where_the_line_is_zero_and_has_no_interval_without_a_slope():
    effects, covariance = pd.Series({"Intercept": -0.3, "x": 0.6}), np.diag([1e-4, 1e-4])
    names = list(effects.index)
    sure = mixed.Mixed(effects, pd.DataFrame(covariance, names, names), 100)
    found = sure.crossing("x")
    t = sure.interval("x").high - 0.6  # t times the error of the slope, 0.01
    assert found.value == pytest.approx(0.5)
    for end in (found.low, found.high):  # by the definition: on the edge of what the line's error allows
        assert abs(-0.3 + 0.6 * end) == pytest.approx(t * np.sqrt(1 + end**2), rel=1e-6)
    vague = replace(sure, covariance=pd.DataFrame(np.diag([1e-4, 1.0]), names, names))
    assert np.isnan([vague.crossing("x").low, vague.crossing("x").high]).all()
    assert sure.at({"Intercept": 1, "x": 0.5}).value == pytest.approx(0)


# --- what became of an objective ------------------------------------------------------------------

PAIRS = 8


def fate(world="w", own="first", compatibility=0.0, strength=0.9, other=0.9, seeds=1, **means):
    """Margins that are constant over pairs, but for a slope that is the same everywhere."""
    given = {"base": 0.1, "alone": 0.5, "other_alone": 0.0, "then_other": 0.2, "last": 0.4, "both": 0.45, "early": 0.44}
    slope = np.linspace(-0.01, 0.01, PAIRS)
    margins = {name: np.tile(value + slope, (seeds, 1)) for name, value in (given | means).items()}
    return Fate(world, own, compatibility, strength, other, alone_dpo=np.ones((seeds, PAIRS)), **margins)


def test_shares_by_hand():
    row = fate().row()
    assert row["gain"] == pytest.approx(0.4) and row["share"] == pytest.approx(-0.75)
    assert row["order"] == pytest.approx(0.5)  # (0.4 - 0.2) / 0.4
    assert row["both"] == pytest.approx(-0.125) and row["transfer"] == pytest.approx(-0.25)
    assert row["early"] == row["early_top"] == pytest.approx(-0.15)
    assert row["outcome"] == "degraded" and fate().learned


def test_ends_and_transfer_can_leave_out_pairs():
    one = fate()
    turned = one.then_other.copy()
    turned[:, :4] += 1.0
    moved = replace(one, then_other=turned)
    assert moved.end("then_other", skipped=4) == pytest.approx(one.end("then_other", skipped=4))
    assert moved.end("then_other") == pytest.approx(one.end("then_other") + 0.5 / 0.4)
    other = one.other_alone.copy()
    other[:, 4:] += 1.0
    assert replace(one, other_alone=other).transfer(4) == pytest.approx(one.transfer(4))


def test_proportional_forgetting_leaves_no_excess(rng):
    gained = rng.normal(0.4, 0.1, PAIRS)
    one = fate(seeds=2)
    proportional = replace(one, alone=one.base + gained, then_other=one.base + 0.25 * gained)
    assert proportional.stray == pytest.approx(0, abs=1e-6)
    own = np.array([1, -1] * (PAIRS // 2)) * 0.3
    own -= np.polyval(np.polyfit(gained, own, 1), gained)
    stray = replace(proportional, then_other=proportional.then_other + own)
    assert stray.stray == pytest.approx(own.std(ddof=1) / stray.gain, rel=1e-6)
    assert np.isnan(fate().stray)  # one seed: what seeds share is not known


def test_what_stage_1_did_not_teach_takes_no_part():
    rows = claims.table_of_fates([fate(), fate(alone=0.05)])
    assert len(rows) == 1 and rows.own_c.tolist() == [0]
    assert claims.table_of_fates([]).empty


# --- rules ----------------------------------------------------------------------------------------


class Model:
    """In the place of a fit: every term has this interval."""

    def __init__(self, low, high):
        self.found = Interval((low + high) / 2, low, high)

    def interval(self, term):
        return self.found


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(JUST, 0.6, REPRODUCED), (0, 0.6, INCONCLUSIVE), (-0.1, 0.55 - JUST, NOT_REPRODUCED), (JUST, 0.5, SMALLER)],
)
def test_s2_turns_where_its_rule_says(low, high, verdict):
    assert claims.depends_on_relation(Model(low, high)).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(JUST, 3.1, REPRODUCED), (-0.2, 3.1, INCONCLUSIVE), (-0.1, 3.0 - JUST, NOT_REPRODUCED), (JUST, 2.9, SMALLER)],
)
def test_s6_turns_where_its_rule_says(low, high, verdict):
    assert claims.strong_signal_survives(Model(low, high)).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(JUST, 0.6, REPRODUCED), (-0.6, -JUST, REPRODUCED), (-0.5, 0.5, NOT_REPRODUCED), (-0.1, 0.6, INCONCLUSIVE)],
)
def test_s3_turns_where_its_rule_says(low, high, verdict, monkeypatch):
    monkeypatch.setattr(claims, "fit", lambda *_: Model(low, high))
    assert claims.depends_on_order(pd.DataFrame()).verdict == verdict


@pytest.mark.parametrize(
    ("outcomes", "value", "verdict"),
    [
        (["degraded"] * 10 + ["stable"] * 10, 2, REPRODUCED),
        (["degraded"] * 19 + ["stable"], 1, NOT_REPRODUCED),  # one of twenty is what errors make
        (["degraded"] * 10 + ["inconclusive"] * 10, 1, INCONCLUSIVE),
        (["degraded"] * 16 + ["stable"] * 4, 2, REPRODUCED),  # 4 of 20: chance 0.016
        (["degraded"] * 17 + ["stable"] * 3, 1, NOT_REPRODUCED),  # 3 of 20: chance 0.075
    ],
)
def test_s1_counts_outcomes_beyond_errors(outcomes, value, verdict):
    claim = claims.no_single_pattern(pd.DataFrame({"world": range(20), "outcome": outcomes}), "world", "worlds")
    assert (claim.value, claim.verdict) == (value, verdict)


@pytest.mark.parametrize(("stable", "value"), [([0, 2, 4, 6], 1), ([0, 1, 2, 3, 4, 5], 1), ([0, 2, 4, 6, 8], 2)])
def test_s1_counts_an_outcome_once_in_a_world(stable, value):
    """Of 20 worlds of two objectives, where an error has a chance of 0.1: five are more than chance, four (0.13) or six
    rows of three worlds are not."""
    rows = pd.DataFrame({"world": np.arange(40) // 2, "outcome": "degraded"})
    rows.loc[stable, "outcome"] = "stable"
    assert claims.no_single_pattern(rows, "world", "worlds").value == value


def test_s1_has_nothing_to_say_without_rows():
    claim = claims.no_single_pattern(None, "world", "worlds")
    assert (claim.value, claim.verdict) == (0, INCONCLUSIVE)


def test_s4_is_a_ratio_of_root_mean_squares_over_worlds(rng):
    """Pairs stray by 0.4 or 0.8 of the gain, the mean change is 0.6 or 0.8 of it: sqrt(0.16 + 0.64) / 1."""
    unit = np.array([1, -1] * (PAIRS // 2)) * np.sqrt((PAIRS - 1) / PAIRS)  # of standard deviation 1
    unit -= np.polyval(np.polyfit(np.arange(PAIRS), unit, 1), np.arange(PAIRS))
    unit /= unit.std(ddof=1)

    def strays(world, by, change):
        one = fate(world, seeds=2)
        alone = one.base + 0.4 + np.linspace(-0.1, 0.1, PAIRS)
        return replace(one, alone=alone, then_other=alone + 0.4 * (by * unit + change))

    worlds = [strays("a", 0.4, -0.6), strays("b", 0.8, 0.8)]
    claim = claims.pairs_stray(worlds)
    assert claim.value == pytest.approx(np.sqrt(0.8), rel=1e-6)
    ends = np.log([0.8 / 0.8, 0.4 / 0.6])  # either world left out; Student's 97.5 % of one degree of freedom is 12.706
    half = 12.706 * np.sqrt(0.5 * np.sum((ends - ends.mean()) ** 2))
    assert np.log(claim.interval) == pytest.approx(np.log(claim.value) + np.array([-half, half]), rel=1e-3)
    assert claim.verdict == INCONCLUSIVE
    far = [strays(str(i), 1.5 + 0.01 * i, -0.6) for i in range(4)]
    assert claims.pairs_stray(far).verdict == REPRODUCED
    assert claims.pairs_stray([strays(str(i), 0.4 + 0.01 * i, -0.6) for i in range(4)]).verdict == NOT_REPRODUCED
    assert claims.pairs_stray(worlds[:1]).verdict == claims.pairs_stray([]).verdict == INCONCLUSIVE


def test_s5_asks_the_most_opposed_and_the_most_alike_worlds():
    def world(name, compatibility, end):
        return fate(name, compatibility=compatibility, seeds=2, then_other=end)

    opposed = [world(f"o{i}", -0.8, 0.2 + 0.01 * i) for i in range(4)]
    between = [world(f"b{i}", 0.0, 9.0) for i in range(4)]
    alike = [world(f"a{i}", 0.8, 0.7 + 0.01 * i) for i in range(4)]
    claim = claims.confident_pairs(opposed + between + alike)
    assert claim.verdict == REPRODUCED and claim.value == pytest.approx(0.215 / 0.4)
    falls = [world(f"a{i}", 0.8, 0.3 + 0.01 * i) for i in range(4)]
    assert claims.confident_pairs(opposed + falls).verdict == NOT_REPRODUCED
    assert claims.confident_pairs([]).verdict == INCONCLUSIVE


def test_too_few_worlds_leave_everything_open():
    verdicts = [c.verdict for c in claims.forgetting_claims([fate(), fate(own="second")])]
    assert verdicts == [INCONCLUSIVE] * 6
    assert claims.fitted(None, pd.DataFrame(), np.zeros(3)) == {} and np.isnan(claims.turning_point(None).value)


def test_a_slope_that_is_there_is_found_with_its_turning_point(rng):
    small = {"world": 0.1, "rest": 0.1}
    spread = {"share": small, "order": small, "learned": 1.0, "draws": 3}
    spread |= {"compatibilities": [-0.8, 0, 0.8], "strengths": [0.65, 0.95]}
    rows = claims.simulated(claims.Truth(slope=0.8, own=1.0), spread, rng)
    model = claims.model_of(rows)
    assert model.interval("compatibility").value == pytest.approx(0.8, abs=0.15)
    assert model.interval("own_c").value == pytest.approx(1.0, abs=0.3)
    assert claims.turning_point(model).value == pytest.approx(0.625, abs=0.15)  # -(-0.5) / 0.8
    lines = claims.fitted(model, rows, np.array([-0.8, 0.0, 0.8]))
    assert all((low < value).all() and (value < high).all() for value, low, high in lines.values())
    noisy, clean = (value for value, _, _ in lines.values())
    assert noisy[1] + clean[1] == pytest.approx(2 * model.effects["Intercept"])  # their strengths are centred
    assert noisy[2] - noisy[0] == pytest.approx(
        1.6 * (model.effects["compatibility"] + rows.other_c.min() * model.effects["compatibility:other_c"])
    )


def test_simulated_rows_have_the_spreads_that_were_asked_for():
    spread = {"share": {"world": 0.5, "rest": 0.1}, "order": {"world": 0.2, "rest": 0.4}, "learned": 1.0, "draws": 3000}
    rows = claims.simulated(
        claims.Truth(order=0.7), spread | {"compatibilities": [0.0], "strengths": [0.8]}, np.random.default_rng(0)
    )
    for name, mean in (("share", -0.5), ("order", 0.7)):
        one, other = rows.groupby("world")[name].first(), rows.groupby("world")[name].last()
        assert rows[name].mean() == pytest.approx(mean, abs=0.03)
        assert (one - other).std() == pytest.approx(2**0.5 * spread[name]["rest"], rel=0.06)
        assert (one + other).std() == pytest.approx(
            (4 * spread[name]["world"] ** 2 + 2 * spread[name]["rest"] ** 2) ** 0.5, rel=0.06
        )
    fewer = claims.simulated(
        claims.Truth(),
        spread | {"learned": 0.5, "compatibilities": [0.0], "strengths": [0.8]},
        np.random.default_rng(0),
    )
    assert len(fewer) == pytest.approx(len(rows) / 2, rel=0.06)


def test_the_worlds_that_decide_are_new_and_those_of_the_registered_grid():
    registration = registered("06_forgetting_map")
    values = read_yaml(project_root() / "params" / registration.profile / "06_forgetting_map.yaml")
    full, own = (resolve(SOURCE, some, "full") for some in (values, {}))
    assert not {*full.draws} & {*registration.tuning_seeds, *own.draws}  # worlds that nobody has looked at
    assert [full.compatibilities, full.strengths] == [registration.spread[k] for k in ("compatibilities", "strengths")]


# --- runs -----------------------------------------------------------------------------------------


def test_every_cell_is_a_world_with_what_was_asked_for():
    p = parameters(compatibilities=[-0.5, 0.5], strengths=[0.7, 0.9], draws=[3], control_compatibilities=[])
    assert len(p.worlds()) == 8
    for setting in p.worlds()[:3]:
        relation, (first, second) = setting.world.compatibility(), setting.world.objectives
        assert relation["correlation"] == pytest.approx(-0.5, abs=0.02)
        assert f"{first.strength:.2f}/{second.strength:.2f}" in setting.name
    assert [other_of(name) for name in OBJECTIVES] == ["second", "first"]


def test_no_two_worlds_share_anything_and_controls_are_run_in_worlds_of_the_map():
    p = parameters(compatibilities=[-0.5, 0.5], strengths=[0.7, 0.9], draws=[3, 4], control_compatibilities=[0.5])
    weights = [tuple(s.world.objective("first").weights.values()) for s in p.worlds()]
    assert len(set(weights)) == len(p.worlds()) == 16
    (control,) = p.control_worlds()
    assert control in p.worlds() and "+0.5, 0.90/0.90" in control.name
    with pytest.raises(BadInput, match=r"control_compatibilities=\[0.1\]: expected some of"):
        parameters(control_compatibilities=[0.1])


def test_controls_have_seeds_of_their_own_and_leave_the_map_its_own():
    p = parameters(seeds=[1], control_seeds=[2, 5])
    named = {
        phase: {int(job.label.split()[-1]) for job in jobs} for phase, jobs in p.phases().items() if "Stage" in phase
    }
    controls = [job.label for job in p.phases()["controls"]]
    assert named == {"Stage 1": {1, 2, 5}, "Stage 2": {1}}
    assert {int(name.split()[-1]) for name in controls} == {2, 5}
    assert len(controls) == 2 * len(p.controls(p.control_worlds()[0], 2))
    with pytest.raises(BadInput, match=r"control_seeds=\[1, 1\]: expected different numbers"):
        parameters(control_seeds=[1, 1])


def test_both_orders_share_their_first_stages_and_take_as_many_updates_as_both_at_once():
    p = parameters()
    (setting, *_) = p.worlds()
    runs = {name: p.arm(setting, name, 0) for name in ARMS}
    assert runs["first → second"].start == runs["first"] and runs["second → first"].start == runs["second"]
    one, other, both = (updates_on_pairs(runs[name]) for name in ("first", "first → second", "both at once"))
    assert one + other == both


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_differs_from_plain_stage_2_in_what_its_name_says(name):
    p = parameters()
    (setting,) = p.control_worlds()
    plain, run = p.training(setting, OBJECTIVES, 0), p.controls(setting, 0)[name]
    if name == "plain":
        assert identity(run) == identity(plain)
        return
    assert identity(run) != identity(plain)
    rows, own = plain.pairs.rows().to_list(), run.pairs.rows().to_list()
    if "replayed" in name:
        share = int(name.split()[0]) / 100
        assert own[: len(rows)] == rows and len(own) == len(rows) + round(share * len(rows))
        assert {row["objective"] for row in own[len(rows) :]} == {"first"}
    elif name == "labels by a coin":
        same = [a == b for a, b in zip(own, rows, strict=True)]
        turned = [(a["chosen"], a["rejected"]) == (b["rejected"], b["chosen"]) for a, b in zip(own, rows, strict=True)]
        assert all(a != b for a, b in zip(same, turned, strict=True)) and 4 < sum(turned) < 28
    elif name == "the first objective again":
        first = p.trained_on(setting, ("first",), 0).rows().to_list()
        assert {row["objective"] for row in own} == {"first"} and own != first
    else:
        assert own == rows
        differs = {
            "against Stage 1": run.reference == "start",
            "an adapter of its own": isinstance(run, TrainingOnTop) and run.seed != plain.seed,
            "IPO": isinstance(run.method, IPO),
        }
        assert differs.get(name, run.method != plain.method)


def test_a_control_is_compared_with_plain_stage_2_on_the_same_pairs(monkeypatch):
    """Pairs that stray alike under both leave a contrast without an error."""
    p = parameters(seeds=[0])
    (setting,) = p.control_worlds()
    names = {identity(run): name for name, run in p.controls(setting, 0).items()}
    stray = np.linspace(-1, 1, PAIRS)
    means = {"plain": (0.1, 0.3), "IPO": (0.3, 0.2), None: (0.5, 0.4)}  # None: each objective alone

    def gained(self, _, objective, trainings):
        name = names.get(identity(trainings[0]))
        mean = means.get(name, (0.0, 0.0))[OBJECTIVES.index(objective)]
        return np.array([mean + (stray if name else 0 * stray)])

    monkeypatch.setattr(type(p), "_gained", gained)
    kept = p.kept(setting)
    assert kept["IPO"].first.value == pytest.approx(0.6) and kept["IPO"].second.value == pytest.approx(0.5)
    first, second = kept["IPO"].first_beyond, kept["IPO"].second_beyond
    assert (first.low, first.high) == pytest.approx((0.4, 0.4)) and second.value == pytest.approx(-0.25)
    assert kept["IPO"].first.low < 0.4
    assert kept["plain"].first_beyond.value == kept["plain"].second_beyond.value == 0


def test_all_weights_are_a_control_in_both_stages():
    p = parameters()
    (setting,) = p.control_worlds()
    run = p.controls(setting, 0)["all weights"]
    assert run.lora.rank == run.start.lora.rank == 0 and run.loop.learning_rate == p.full_learning_rate
    assert "all weights" not in parameters(full_learning_rate=None).controls(setting, 0)


def test_an_adapter_on_top_trains_in_one_precision_and_is_measured_in_another(monkeypatch):
    p, asked = parameters(), []
    (setting,) = p.control_worlds()
    run = p.controls(setting, 0)["an adapter of its own"]

    def load(_, scoring):
        asked.append(scoring)
        raise LookupError  # what follows takes a trained Stage 1

    monkeypatch.setattr(type(run.base), "load", load)
    for policy in (run._starting_policy, run.final_policy, lambda: run.final_policy(scoring=True)):
        with pytest.raises(LookupError), policy():
            pass
    assert asked == [False, False, True]


def test_joined_and_relabelled_pairs_are_known_by_their_content():
    p = parameters()
    (setting, *_) = p.worlds()
    first, second = (p.trained_on(setting, (o,), 0) for o in OBJECTIVES)
    assert Joined((first, second)).fingerprint() != Joined((second, first)).fingerprint()
    assert Relabelled(first, 0).fingerprint() != Relabelled(first, 1).fingerprint() != first.fingerprint()


# --- what can be foretold -------------------------------------------------------------------------


def test_last_comes_what_harms_the_other_least():
    """By hand: the second's stage costs the first 0.25 of its gain, the first's costs the second 0.5."""
    one = fate(own="first", other_alone=0.0, then_other=0.2, last=0.4)
    other = fate(own="second", other_alone=-0.1, then_other=0.1, last=0.3)
    found = orders([one, other], 4).loc["w"]
    assert found.chosen == "first → second"
    assert found["first → second"] == pytest.approx((0.25 + 0.5) / 2)  # (0.2 - 0.1) / 0.4 and (0.3 - 0.1) / 0.4
    assert found["second → first"] == pytest.approx((0.75 + 0.0) / 2)
    assert found.gained == pytest.approx(0)
    assert orders([replace(one, alone=one.base - 0.01), other], 4).empty  # not learnt: there is no share of a gain


def test_a_measure_that_orders_all_outcomes_has_a_correlation_of_one(rng):
    rows = pd.DataFrame({"world": np.repeat(range(10), 2), "share": np.arange(20.0), "same": np.arange(20.0) ** 3})
    rows["noise"] = rng.normal(size=20)
    found = foretold(rows, {"good": "same", "bad": "noise"}, rng, 200)["correlation with the share"]
    assert [found["good"].value, found["good"].low] == pytest.approx([1, 1])
    assert found["bad"].low < found["bad"].value < found["bad"].high < 1
    assert np.isnan(foretold(rows[:0], {"good": "same"}, rng, 10).iloc[0, 0].value) and np.isnan(nothing().value)


def test_worlds_of_one_cell_are_ties_for_a_rank(rng):
    cell, share = np.repeat([-0.8, 0.0, 0.8], 6), rng.normal(size=18) + np.repeat([-1, 0, 1], 6)
    rows = pd.DataFrame(
        {"world": np.arange(18), "share": share, "exact": cell, "drawn": cell + 1e-12 * rng.normal(size=18)}
    )
    found = foretold(rows, {"exact": "exact", "drawn": "drawn"}, rng, 50)["correlation with the share"]
    assert found["drawn"].value == found["exact"].value != rows.drawn.corr(rows.share, method="spearman")


def test_an_axis_of_controls_names_its_ends_and_no_two_that_stand_too_close():
    def ticks(first, second):
        panel = {name: (Interval(x, x - 0.1, x + 0.1),) * 2 for name, x in (("plain", first), ("other", second))}
        (axis, _) = plots.kept({"w": panel}).axes
        return axis.get_xticks().tolist()

    assert ticks(-5.0, 0.5) == [-3, -1, 0]
    assert ticks(-0.5, 12.0) == [-1, 0, 1, 10] and ticks(-4.0, 4.0) == [-3, -1, 0, 1, 3]
