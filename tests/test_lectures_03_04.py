"""What notebooks 03 and 04 leave to the library: bookkeeping by hand, figures whose labels cover nothing, exercises."""

import ast
import itertools
import re
from types import SimpleNamespace

import jupytext
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from preflab import rules
from preflab.claims import corrected, win_change
from preflab.experiments.ablations import Accuracy, ablation_row, change_of
from preflab.experiments.coordination import (
    Candidates,
    Coordination,
    controlled_kind,
    course,
    made_of_one_pair,
    negative_share,
)
from preflab.experiments.variants import Variant
from preflab.figures import coordination as plots
from preflab.judging import Judged, Place, as_table, counted, decided
from preflab.measured import PARTS, g_of, ordered
from preflab.paths import project_root
from preflab.running.reading import defaults, resolve
from preflab.stages.drawn_answers import Drawn
from preflab.statistics import Interval
from preflab.weightings import Weights

SOURCES = {n: next((project_root() / "notebooks" / "src").glob(f"{n}_*.py")) for n in ("03", "04")}


def parameters(number, **given):
    return resolve(SOURCES[number], given, "test")


# --- judging --------------------------------------------------------------------------------------


def answers(log_probs=(-2.0, -4.0), reference=(-3.0, -6.0)):
    samples = [([1], [5, 6]), ([1], [5, 6])]
    return Drawn(samples, ["a b", "a c"], np.array(log_probs), np.array(reference))


def judged(*scores):
    """Runs with these scores of one answer a prompt, by a judge who is sure of every difference."""
    return Judged([answers()] * len(scores), np.array(scores, dtype=float)[..., None], temperature=1e-6)


def test_chances_are_taken_seed_by_seed_or_against_the_only_run():
    own, rival = judged([1, 2], [3, 4]), judged([0, 2], [5, 4])
    assert own.chances(rival).tolist() == [[1, 0.5], [0, 0.5]]
    assert own.chances(judged([2, 2])).tolist() == [[0, 0.5], [1, 1]]
    assert own.score == 2.5


def test_a_table_says_what_it_rests_on_and_shows_nothing_where_nothing_was_measured():
    rows = {"a": {"x": 0.12345, "n": 3}, "b": {"x": None, "w": Interval(0.5, 0.25, 1)}, "c": {"x": float("nan")}}
    table = as_table(rows, {"prompts": 128, "seeds": 1}, ["x", "w", "n"])
    assert table.columns.name == "128 prompts, 1 seed"
    assert table.values.tolist() == [["0.123", "", "3"], ["", "+0.500 [+0.250, +1.000]", ""], ["", "", ""]]
    assert list(as_table(rows, {})) == ["x", "n", "w"]
    nan = float("nan")
    assert as_table({"one seed": {"x": Interval(0.5, nan, nan)}}, {}).values.tolist() == [["+0.500"]]
    assert counted({"held-out pairs": 1, "seeds": 2}) == "1 held-out pair, 2 seeds"


def test_decided_is_what_leaves_out_zero():
    some = {"above": Interval(2, 1, 3), "below": Interval(-2, -3, -1), "open": Interval(0.1, -1, 1)}
    assert decided(some | {"touching": Interval(1, 0, 2)}) == ["above", "below"]


# --- notebook 03 ----------------------------------------------------------------------------------


def measured(scale, held_out):
    """Two steps; G of part i is scale * i."""
    g = np.arange(len(PARTS)) * scale * np.ones((2, 1))
    return SimpleNamespace(g=g, held_out=np.array(held_out, dtype=float), progress=np.array([0.0, 1.0]))


HELD_OUT = [[[-1, -2], [-3, -4]], [[-2, -1], [-4, -9]]]  # 2 steps, chosen and rejected, 2 pairs


def test_g_and_the_change_of_log_probs_are_stacked_by_run():
    runs = [measured(1, HELD_OUT), measured(2, HELD_OUT)]
    assert g_of(runs, "trained").tolist() == [[6, 6], [12, 12]]
    assert change_of(runs, "chosen").tolist() == [[0, 0], [0, 0]]
    assert change_of(runs, "rejected").tolist() == [[0, -3], [0, -3]]


def test_a_pair_is_ordered_if_its_chosen_response_gains_more():
    assert ordered(np.array([[1.0, 0.0, -1.0, 0.0], [0.0, 0.0, -2.0, 1.0]])) == 0.5


def test_an_ablation_beside_its_plain_method_and_the_sft_model():
    own, plain, sft = judged([1, 2], [3, 4]), judged([0, 2], [5, 4]), judged([0, 0])
    accuracy = Accuracy(np.array([0.9, 0.7]), np.array([0.6, 0.8]))
    row = ablation_row(own, plain, sft, [measured(1, HELD_OUT)] * 2, accuracy)
    assert row["against SFT − ½"] == win_change(np.ones((2, 2)))
    assert row["against plain − ½"] == win_change(np.array([[1, 0.5], [0, 0.5]]))
    assert (row["score"], row["chosen"], row["rejected"]) == (2.5, 0, -3)
    assert (row["held-out accuracy"], row["gap"]) == pytest.approx((0.7, 0.1))
    assert {"KL", "entropy", "unique", "distinct-2", "length"} < set(row)


def test_every_answer_of_a_prompt_is_scored_on_that_prompt():
    """K = 8 answers a prompt, prompt by prompt: the right tool for one prompt is the wrong one for another."""
    p = parameters("03")
    prompts, world = p.prompts(range(3)).messages(), p.pairs.world
    best = {rows["prompt"][0]["content"]: rows["chosen"][0]["content"] for rows in p.pairs.test_pairs.rows()}
    texts = [best[prompt[0]["content"]] for prompt in prompts for _ in range(8)]
    drawn = Drawn([([1], [5])] * 24, texts, np.zeros(24), np.zeros(24))
    scores = p.scores(drawn, prompts)
    assert scores.shape == (3, 8) and (scores == scores[:, :1]).all()
    for row, prompt in zip(scores, prompts, strict=True):
        asked = world.language.parse(prompt[0]["content"])
        assert row[0] == pytest.approx(p.utility.utility(asked, best[prompt[0]["content"]]))
    assert p.label_temperature == world.temperature("helpful")


def test_a_rule_that_no_negative_g_says_how_often_it_acted():
    p = parameters("03")
    seen = [[(0.1, -1), (0.1, -2), (-0.1, 3), (0.1, -1)], [(0.1, 1), (0.1, 1), (-0.1, 1), (0.1, -1)]]
    logs = [SimpleNamespace(load=lambda rows=rows: [{"live": g} for g in rows]) for rows in seen]

    def acted(**row):
        runs = [SimpleNamespace(row=Variant(method="dpo", **row), training=log) for log in logs]
        return p.acted(runs).tolist()

    assert acted(rule="while_sign", arguments={"part": "negative"}, live_every=1) == [0.75, 0.25]
    assert acted(rule="while_sign", arguments={"part": "positive"}, live_every=1) == [0.25, 0.25]
    assert acted(rule="while_sign", arguments={"part": "negative", "sign": "positive"}, live_every=1) == [0.25, 0.75]
    assert acted(rule="without_negative") == [1, 1]


def test_few_pairs_are_seen_as_often_as_makes_the_updates_equal():
    p = parameters("03")
    plain, few = (p.training(Variant(method="dpo", repeats=repeats), 0) for repeats in (1, 8))
    assert len(few.pairs.rows()) * 8 == len(plain.pairs.rows()) and few.loop.epochs == 8 * plain.loop.epochs
    assert p.updates_of(few) == p.updates_of(plain)


def test_rows_know_their_runs_and_their_plain_method():
    p = parameters("03")
    assert list(p.by_row()) == list(p.variants)
    name = "DPO, no negative early"
    assert [(run.name, run.seed) for run in p.by_row()[name]] == [(name, s) for s in p.seeds]
    assert p.rivals["PPO, no negative"] == "PPO" and "DPO" not in p.rivals
    assert p.rivals["DPO on few pairs, weights that stay"] == "DPO on few pairs"
    ours = {"method": "dpo", "rule": "equal_weights", "arguments": {"beta": 0.3, "size": 0.1}}
    plain = {"DPO": {"method": "dpo"}, "DPO, 0.3": {"method": "dpo", "arguments": {"beta": 0.3}}}
    assert parameters("03", variants={"x": ours, **plain}).rivals == {"x": "DPO, 0.3"}


def test_claims_are_asked_of_every_row_that_takes_something_away(monkeypatch):
    p = parameters("03")
    some = dict.fromkeys(p.variants, judged([1, 2], [3, 4])) | {"DPO": judged([0, 2], [5, 4])}
    gap = {name: Accuracy(np.array([0.9]), np.array([0.6 - 0.1 * (name == "PPO, no negative")])) for name in p.variants}
    monkeypatch.setattr(type(p), "acted", lambda self, runs: np.array([0.25]))
    weights = SimpleNamespace(weights=[np.array([2.0, 4.0]), np.array([9.0]), np.array([1.0, 0.5])])
    early, *_, no_negative = p.ablations(p.by_row(), some, gap, {name: [weights] for name in p.variants})
    assert (early.method, early.rule, early.repeats) == ("dpo", rules.Until(0.4, rules.WithoutNegative()), 1)
    assert early.chances.tolist() == [[1, 0.5], [0, 0.5]] and early.gap == pytest.approx(0)
    assert (early.faded, early.acted) == ([0.25], 0.25)
    assert (no_negative.method, no_negative.rule) == ("ppo", rules.WithoutNegative())
    assert (no_negative.chances == 0.5).all() and no_negative.gap == pytest.approx(0.1)


# --- notebook 04 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (rules.Plain(), [0.5, 0.5, 0.5]),
        (rules.Coordinated(), [0.25, 0.5, 0.625]),
        (rules.Coordinated(start=0.6, end=0.4, shape="step"), [0.6, 0.4, 0.4]),
        (rules.Coordinated(shape="cosine"), [0.25, 0.5, 0.5 + 0.25 * np.sqrt(0.5)]),
        (rules.WithoutNegative(), [0, 0, 0]),
    ],
)
def test_lambda_is_read_off_what_a_rule_makes_of_one_pair(rule, expected):
    made = made_of_one_pair(rule, [0.0, 0.5, 0.75])
    assert negative_share(made) == pytest.approx(expected)
    if isinstance(rule, rules.Coordinated):
        assert np.abs(made).sum(1) == pytest.approx(2)  # the weight of the pair stays


def test_lambda_no_negative_what_an_adaptive_run_has_seen():
    training = SimpleNamespace(rule=rules.Adaptive(gain=0.5), load=lambda: [{"live": (0.1, 0.3)}, {"live": (0.3, 0.1)}])
    along = course([SimpleNamespace(training=training)] * 3, [measured(1, HELD_OUT)] * 3)
    assert along.share == pytest.approx(np.array([[0.625, 0.375]] * 3))
    assert along.share_progress.tolist() == [0, 0.5] and along.progress.tolist() == [0, 1]
    assert {part: g.tolist() for part, g in along.g.items()} == {
        "positive": [[1, 1]] * 3, "negative": [[2, 2]] * 3, "trained": [[6, 6]] * 3
    }  # fmt: skip


def test_budgets_are_known_before_anything_trains_and_equal():
    budgets = parameters("04").budgets()
    assert budgets["cDPO"] == {
        "updates": 40, "thousand passes": 4, "values to choose from": 2, "starts from the choice of": "DPO"
    }  # fmt: skip
    assert budgets["DPO"]["starts from the choice of"] == "—" and budgets["cDPO, adaptive"]["updates"] == 33
    assert {row["values to choose from"] for row in budgets.values()} == {2}
    for name, rival in parameters("04").rivals.items():
        assert budgets[name]["thousand passes"] <= budgets[rival]["thousand passes"]


def test_passes_are_told_in_thousands(monkeypatch):
    p = parameters("04")
    monkeypatch.setattr(type(p), "passes", lambda *_: 1_234_400)
    assert {row["thousand passes"] for row in p.budgets().values()} == {1234}


def test_a_budget_is_told_of_the_first_value():
    """Where values cost unequally, as with a trunk for the value head and without."""
    sweep = [{"own_value_trunk": True}, {"own_value_trunk": False}]
    p = parameters("04", variants={"PPO": {"method": "ppo", "sweep": sweep}})
    first, *_, last = (round(p.passes(run.training) / 1000) for run in p.plain_candidates()["PPO"].runs)
    assert p.budgets()["PPO"]["thousand passes"] == first > last


def test_rows_that_are_drawn_and_the_rewards_that_are_needed():
    p = parameters("04")
    assert p.scheduled == ["DPO", "cDPO", "cDPO, adaptive", "PPO"] and p.verified == ["GRPO, correctness"]
    assert p.rivals == {"cDPO": "DPO", "cDPO, adaptive": "DPO", "hPPO": "PPO"}
    assert [stage.kind for stage in p.reward_stages()] == ["correct", "implicit"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"method": "dpo", "rule": "coordinated"}, "cDPO"),
        ({"method": "ppo", "rule": "coordinated"}, "cPPO"),
        ({"method": "ppo", "rule": "thresholded"}, "hPPO"),
        ({"method": "dpo", "rule": "adaptive", "live_every": 2}, None),
        ({"method": "dpo"}, None),
    ],
)
def test_the_papers_names_of_controlled_methods(row, kind):
    assert controlled_kind(Variant(**row)) == kind


def test_phases_try_plain_methods_then_all_then_train_what_was_chosen(monkeypatch):
    p = parameters("04")
    monkeypatch.setattr(Coordination, "merits", lambda self, tried: np.eye(len(tried))[-1])  # the last one is best
    plain, everything, final = (jobs() if callable(jobs) else jobs for jobs in p.phases().values())
    assert [job.label for job in plain][:2] == ["DPO beta=0.1, seed 0", "DPO beta=0.3, seed 0"]
    assert len(plain) == 6 and len(everything) == 12 and len(final) == 12
    assert "cDPO beta=0.3 start=0.25 end=0.75, seed 1" in [job.label for job in final]
    choice = p.choices(p.candidates(), dict.fromkeys(p.variants, np.array([0.25, 0.75])))["cDPO"]
    assert list(choice.values()) == [
        "start 0.4 end 0.6, start 0.25 end 0.75", "0.25, 0.75", "beta 0.3 start 0.25 end 0.75"
    ]  # fmt: skip


@pytest.fixture
def contest(monkeypatch):
    """Notebook 04 with judged rows: DPO loses every prompt to cDPO, and wins every one against adaptive cDPO."""
    p = parameters("04")
    monkeypatch.setattr(
        "preflab.experiments.coordination.rewards.correct", lambda language, prompts, texts: np.array([1.0, 0.0])
    )
    score = {"cDPO": 3, "cDPO, adaptive": 1}
    return p, {name: judged(*[[score.get(name, 2)] * 2] * 2) for name in p.variants}


def test_rows_are_compared_with_their_rivals_at_a_level_for_all_of_them(contest):
    p, some = contest
    rows = p.compared(some, judged([2, 2]))
    assert rows["DPO"]["against the rival − ½"] is None and rows["DPO"]["right answer"] == 0.5
    assert rows["cDPO"]["against the rival − ½"].value == 0.5
    assert rows["hPPO"]["against the rival − ½"] == win_change(np.full((2, 2), 0.5), corrected(3))
    assert p.adaptive_against_static(some)["cDPO, adaptive / cDPO"].tolist() == [[0, 0], [0, 0]]
    contests = p.contests(some, judged([2, 2]))
    assert {name: c.kind for name, c in contests.items()} == {"cDPO": "cDPO", "hPPO": "hPPO"}
    assert contests["cDPO"].chances.mean() == 1 and contests["cDPO"].plain_against_sft.mean() == 0.5


def test_a_place_is_the_chosen_candidate_first_and_the_others_on_other_prompts(contest, monkeypatch):
    p, some = contest
    asked = []

    def judge(self, runs, which):
        asked.append(([run.row.arguments["beta"] for run in runs], which))
        return judged([7, 7])

    monkeypatch.setattr(Coordination, "judged", judge)
    tried = p.plain_candidates()["DPO"]
    assert isinstance(tried, Candidates) and len(tried) == 2
    place = p.place(some["DPO"], tried, np.array([0.2, 0.9]))
    assert place.family == "dpo" and place.score.tolist() == [2, 7]
    assert place.kl.tolist() == [1.5, 1.5] and place.diversity.tolist() == [1.5, 1.5]
    assert asked == [([0.1], p.validation_prompts)]


# --- figures --------------------------------------------------------------------------------------

SFT = (0.2, 0.5)


def place(score, kl=2.0, diversity=0.4, others=(), family="dpo"):
    return Place(family, *(np.array([value, *others]) for value in (score, kl, diversity)))


@pytest.fixture
def drawn():
    figures = []

    def draw(places):
        figures.append(plots.pareto(places, SFT))
        return figures[-1].axes

    yield draw
    for figure in figures:
        plt.close(figure)


def covered(axis):
    """How many marks lie under a name, and how many names under another one."""
    boxes = [text.get_window_extent() for text in axis.texts]
    marks = np.concatenate([axis.transData.transform(line.get_xydata()) for line in axis.lines[1:]])  # not the front
    under = sum(box.contains(*mark) for mark in marks for box in boxes)
    return under, sum(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_names_cover_no_mark_and_no_other_name(drawn, rng):
    """Five methods at one place; then 17, six of them within a hundredth of each other."""
    for axis in drawn({f"method {i}": place(1.0) for i in range(5)} | {"high": place(2.0), "low": place(0.3)}):
        assert covered(axis) == (0, 0)
        assert [text.get_text() for text in axis.texts] == [*(f"method {i}" for i in range(5)), "high", "low"]
    wide, narrow = [1.0] * 11 + [0.0] * 6, [0.0] * 11 + [0.01] * 6
    spread = [w * rng.random(3) + n * rng.random(3) for w, n in zip(wide, narrow, strict=True)]
    many = {f"m{i}": place(0.5 + a, 1 + 2 * b, 0.4 + 0.1 * c) for i, (a, b, c) in enumerate(spread)}
    for axis in drawn(many):
        assert covered(axis) == (0, 0)
        assert [text.get_text() for text in axis.texts] == [str(i) for i in range(1, 18)]
    assert [text.get_text() for text in axis.figure.legends[-1].get_texts()] == list(many)


def test_a_picture_is_the_same_when_it_is_drawn_again(drawn):
    places = {f"m{i}": place(1.0) for i in range(5)}
    first, again = ([text.get_position() for text in drawn(places)[0].texts] for _ in range(2))
    assert first == again


def test_a_broken_language_lies_on_the_lower_edge_as_a_triangle(drawn):
    for axis in drawn({"good": place(1.5), "broken": place(-6.0, kl=90.0, diversity=0.6, others=[0.3, -9.0])}):
        low, high = axis.get_ylim()
        assert low > 0 and high > 1.5
        marks = {line.get_marker(): line.get_ydata() for line in axis.lines}
        assert marks["v"] == pytest.approx([low]) and marks["o"] == pytest.approx([1.5])
        assert marks["."].tolist() == [0.3]  # what is broken and was not chosen is left out


def test_the_line_joins_what_nothing_beats_in_both(drawn):
    less_kl = drawn({"a": place(1.5, kl=1.0), "b": place(1.6, kl=3.0), "beaten": place(1.4, kl=2.0)})[0]
    np.testing.assert_allclose(less_kl.lines[0].get_xydata(), [[0, 0.2], [1, 1.5], [3, 1.6]])
    diverse = {"a": place(1.5, diversity=0.3), "b": place(1.6, diversity=0.2), "c": place(1.4, diversity=0.1)}
    more_diverse = drawn(diverse | {"broken": place(-6.0, diversity=0.9)})[1]
    np.testing.assert_allclose(more_diverse.lines[0].get_xydata(), [[0.2, 1.6], [0.3, 1.5], [0.5, 0.2]])


def test_families_differ_by_more_than_colour(drawn):
    markers = {line.get_marker() for line in drawn({"a": place(1.0), "b": place(1.2, family="ppo")})[0].lines}
    assert {"o", "s"} < markers
    assert len({(marker, line) for _, marker, line in plots.PARTS.values()}) == len(plots.PARTS)


def test_shapes_show_lambda_and_what_becomes_of_both_signs():
    t = np.linspace(0, 0.9, 10)
    made = {shape: made_of_one_pair(rules.Coordinated(shape=shape), t) for shape in ("linear", "step")}
    figure = plots.shapes(t, {name: negative_share(some) for name, some in made.items()}, made)
    left, linear, step = figure.axes
    assert left.lines[0].get_ydata() == pytest.approx(0.25 + 0.5 * t)
    assert linear.lines[1].get_ydata() == pytest.approx(1.5 - t)
    assert step.lines[2].get_ydata() == pytest.approx(np.where(t < 0.5, -0.5, -1.5))
    plt.close(figure)


# --- exercises ------------------------------------------------------------------------------------


def exercises(number):
    """The text of the last cell, each paragraph on one line but for code blocks."""
    return jupytext.read(SOURCES[number]).cells[-1].source


def spoken(number):
    return " ".join(exercises(number).split())


def as_row(text):
    return ast.literal_eval("{" + text + "}")


@pytest.fixture
def first_token(monkeypatch):
    """Exercise 1 of 03, done: the class in the module, the line in the table."""
    code, line = re.findall(r"```python\n(.*?)```", exercises("03"), re.S)
    names = vars(rules).copy()
    exec("\n".join(row.removeprefix("   ") for row in code.splitlines()), names)
    (name, kind) = re.fullmatch(r'\s*"(\w+)": (\w+),\s*', line).groups()
    assert len(code.splitlines()) < 15
    monkeypatch.setitem(rules.RULES, name, names[kind])
    return names[kind]


def test_exercise_1_of_03_makes_a_rule_of_the_first_token(first_token):
    c = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, -0.5]])  # right of the prompt
    made = first_token()(Weights(c, torch.tensor([0.5]), torch.tensor([True]), 0.0))
    assert made.tolist() == [[0.0, 0.5, 0.0], [0.0, 0.0, -0.5]]


@pytest.mark.parametrize(
    "text",
    [
        '"DPO, first token": {"method": "dpo", "rule": "first_token"}',
        '"DPO, no negative until 0.2": {"method": "dpo", "rule": "without_negative", "until": 0.2}',
        '"KTO": {"method": "kto"}',
        '"KTO, no negative": {"method": "kto", "rule": "without_negative"}',
    ],
)
def test_rows_of_exercises_of_03_can_be_added(text, first_token):
    assert f"`{text}`" in spoken("03")
    rows = defaults(SOURCES["03"])["variants"] | {"KTO": {"method": "kto"}} | as_row(text)
    p = parameters("03", variants=rows)
    assert len(p.planned()) == 2 * len(rows) and p.training(p.variants[next(iter(as_row(text)))], 0)


def test_exercise_4_of_03_takes_the_oracle():
    (value,) = re.findall(r"`reward: dict = (\{.*?\})`", spoken("03"))
    assert parameters("03", reward=ast.literal_eval(value)).reward_stage().kind == "oracle"


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("cDPO", ['"sweep": [{"start": 0.6, "end": 0.4}, {"start": 0.75, "end": 0.25}]']),
        ("cDPO, adaptive", ['"sweep": [{"gain": 0.5}, {"gain": 0.9}]']),
        ("hPPO", ['"arguments": {"reading": "drop_above"}', '"sweep": [{"tau": 1.5}, {"tau": 2.0}]']),
        ("GRPO, correctness", ['"reward": "oracle"']),
    ],
)
def test_rows_of_exercises_of_04_can_be_changed(name, texts):
    rows = defaults(SOURCES["04"])["variants"]
    for text in texts:
        assert f"`{text}`" in spoken("04")
        rows[name] |= as_row(text)
    assert parameters("04", variants=rows).budgets().keys() == rows.keys()


@pytest.mark.parametrize(
    "text",
    [
        '"KTO": {"method": "kto", "against": "DPO", "sweep": [{"beta": 0.1}, {"beta": 0.3}]}',
        '"ORPO": {"method": "orpo", "against": "DPO", "sweep": [{"weight": 0.1}, {"weight": 1.0}]}',
    ],
)
def test_rows_of_exercises_of_04_can_be_added(text):
    assert f"`{text}`" in spoken("04")
    p = parameters("04", variants=defaults(SOURCES["04"])["variants"] | as_row(text))
    assert p.budgets()[next(iter(as_row(text)))]["starts from the choice of"] == "DPO"


@pytest.mark.parametrize("number", SOURCES)
def test_exercises_say_how_to_rerun(number):
    assert "*Run > Run All Cells*. What is trained already does not train again." in spoken(number)
