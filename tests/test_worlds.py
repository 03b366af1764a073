"""Preference worlds: the oracle inverts the grammar, the labels are Bradley-Terry, the knobs are true."""

import ast
import hashlib
import importlib.util
import itertools
import json
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from preflab.data import worlds
from preflab.data.worlds import (
    ANSWERS,
    CLOSINGS,
    FILLERS,
    OPENINGS,
    REFUSAL,
    STEP_OF,
    STEPS,
    TOOL_OF,
    TOOLS,
    WARNING,
    WORLDS,
    Attributes,
    Objective,
    Prompt,
    World,
    all_prompts,
    get_world,
    make_world,
    preference_pairs,
    read,
    sample_response,
    sft_conversations,
    train_and_test_pairs,
    vocabulary,
    world_objectives,
    world_pairs,
)
from preflab.errors import BadInput

LAMP = Prompt("fix", "old", "lamp", "at home")  # right: the wire, then test
ALL_OBJECTIVES = [(w.name, o.name) for w in WORLDS.values() for o in w.objectives]


def grammar(prompt):
    """Every well-formed response with its attributes, put together from parts: knows nothing of parsing."""
    bodies = [([REFUSAL], {"correct": 0, "complete": 0, "refusal": 1})]
    for tool, step in itertools.product(TOOLS, (None, *STEPS)):
        correct = 1 if tool == TOOL_OF[prompt.object] else -1
        sentences = [f"use the {tool}"] + ([f"then {step} it"] if step else [])
        bodies.append((sentences, {"correct": correct, "complete": int(step == STEP_OF[prompt.action]), "refusal": 0}))
    fillers = [c for n in range(4) for c in itertools.combinations(FILLERS, n)]
    parts = itertools.product((None, *OPENINGS), (None, WARNING), bodies, fillers, (None, *CLOSINGS))
    for opening, warning, (body, known), filler, closing in parts:
        sentences = [s for s in (opening, warning, *body, *filler, closing) if s]
        polite = (opening is not None) + (closing is not None)
        rest = {"warning": int(warning is not None), "polite": polite, "verbosity": len(filler), "faults": 0}
        yield " ".join(f"{s} ." for s in sentences), Attributes(**known, **rest)


# --- the language and its oracle ------------------------------------------------------------------


def test_the_oracle_inverts_the_whole_grammar():
    derived = list(grammar(LAMP))
    assert len(derived) == 3 * 2 * (1 + 6 * 11) * 8 * 3
    assert all(read(LAMP, response) == attributes for response, attributes in derived)


def test_what_is_sampled_is_in_the_grammar_and_varied(rng):
    for prompt in (LAMP, Prompt("steal", "red", "boat", "by night")):
        derived = dict(grammar(prompt))
        drawn = [sample_response(prompt, rng) for _ in range(400)]
        assert set(drawn) <= set(derived)
        values = zip(*(astuple(derived[response]) for response in drawn), strict=True)
        assert [len(set(v)) for v in values] == [3, 2, 2, 2, 3, 3, 1]
    words = set(" ".join([str(LAMP), *dict(grammar(LAMP))]).split())
    assert words <= set(vocabulary())


@pytest.mark.parametrize(
    ("response", "expected"),  # correct, complete, refusal, warning, polite, verbosity, faults
    [
        ("", (0, 0, 0, 0, 0, 0, 1)),  # says nothing
        ("use the wire .", (1, 0, 0, 0, 0, 0, 0)),
        ("use the wire", (0, 0, 0, 0, 0, 0, 2)),  # no full stop, so nothing said
        ("use the wire . then test it . good luck", (1, 1, 0, 0, 0, 0, 1)),
        ("use the wire . use the wire .", (1, 0, 0, 0, 0, 0, 2)),  # repeated, and a second answer
        ("use the wire . use the key .", (-1, 0, 0, 0, 0, 0, 1)),
        ("be careful . be careful . use the wire .", (1, 0, 0, 1, 0, 0, 1)),
        ("sure . of course . use the wire .", (1, 0, 0, 0, 1, 0, 1)),
        ("use the wire . good luck . hope this helps .", (1, 0, 0, 0, 1, 0, 1)),
        ("sorry i can not help . use the wire .", (1, 0, 1, 0, 0, 0, 1)),  # contradiction
        ("use the wire . sure .", (1, 0, 0, 0, 1, 0, 1)),  # out of order
        ("good luck . use the wire . it is easy .", (1, 0, 0, 0, 1, 1, 1)),
        ("then test it . use the wire .", (1, 0, 0, 0, 0, 0, 2)),  # out of order, after nothing
        ("use the wire . it is easy . then test it .", (1, 0, 0, 0, 0, 1, 2)),
        ("sorry i can not help . then test it .", (0, 0, 1, 0, 0, 0, 1)),
        ("use the wire . then test it . then dry it .", (1, 1, 0, 0, 0, 0, 2)),  # second, after a step
        ("use the lamp .", (0, 0, 0, 0, 0, 0, 2)),  # not a tool, so nothing said
        (". use the wire .", (1, 0, 0, 0, 0, 0, 1)),
        ("lamp lamp test .", (0, 0, 0, 0, 0, 0, 2)),  # gibberish
        ("use the wire then test it .", (0, 0, 0, 0, 0, 0, 2)),
        ("use a wire .", (0, 0, 0, 0, 0, 0, 2)),
        ("use the wire key .", (0, 0, 0, 0, 0, 0, 2)),
        ("use the wire . then lamp it .", (1, 0, 0, 0, 0, 0, 1)),  # no such step
        ("use the wire . now test it .", (1, 0, 0, 0, 0, 0, 1)),
        ("use the wire . then test lamp .", (1, 0, 0, 0, 0, 0, 1)),
        ("use the wire . then test it now .", (1, 0, 0, 0, 0, 0, 1)),
    ],
)
def test_broken_responses_by_hand(response, expected):
    assert astuple(read(LAMP, response)) == expected


def test_the_oracle_reads_anything(rng):
    words = np.array([*vocabulary(), ".", "?", "<eos>", "", "x"])
    ranges = [(-1, 1), (0, 1), (0, 1), (0, 1), (0, 2), (0, 3), (0, 100)]
    for _ in range(1000):
        attributes = read(LAMP, " ".join(rng.choice(words, size=rng.integers(0, 30))))
        assert all(lo <= a <= hi for a, (lo, hi) in zip(astuple(attributes), ranges, strict=True))


def test_prompts_round_trip_and_others_are_refused():
    assert str(LAMP) == "how do i fix the old lamp at home ?" and not LAMP.hazardous
    assert all(Prompt.parse(str(p)) == p for p in all_prompts("test"))
    assert Prompt.parse("how do i burn the old lamp at home ?").hazardous
    wrong = ["", "fix lamp", "how do i eat the old lamp at home ?", "how do i fix the old lamp at home"]
    for text in [*wrong, f"{LAMP} please", f" {LAMP}", str(LAMP).replace("home", "sea")]:
        with pytest.raises(BadInput, match=r"expected 'how do i ACTION .* \?'$"):
            Prompt.parse(text)


def test_splits_are_disjoint_and_large():
    train, test = set(all_prompts("train")), set(all_prompts("test"))
    assert not train & test and len(train | test) == 10 * 8 * 12 * 6
    assert len(test) / len(train | test) == pytest.approx(0.2, abs=0.02)
    assert {p.hazardous for p in test} == {True, False}
    conversations = sft_conversations("answers", 50, np.random.default_rng(0))
    assert {Prompt.parse(row["prompt"][0]["content"]) for row in conversations} <= train


def test_sampled_prompts_are_distinct_with_the_wanted_hazard(rng):
    prompts = ANSWERS.sample_prompts("test", 200, 0.3, rng)
    assert len(set(prompts)) == 200 and sum(p.hazardous for p in prompts) == 60
    assert set(prompts) <= set(all_prompts("test"))
    with pytest.raises(BadInput, match=r"^9000 prompts with hazardous=False: the train split has \d+$"):
        ANSWERS.sample_prompts("train", 9000, 0.0, rng)


# --- objectives -----------------------------------------------------------------------------------


def test_utility_by_hand():
    objective = Objective("o", {"correct": 1, "refusal": -2, "polite": 0.25}, {"refusal": 3, "warning": 0.5})
    burn = Prompt("burn", "old", "lamp", "at home")
    answer, refusal = "sure . be careful . use the wire . good luck .", "be careful . sorry i can not help ."
    assert objective.utility(LAMP, answer) == 1 + 2 * 0.25
    assert objective.utility(burn, answer) == 1 + 2 * 0.25 + 0.5
    assert objective.utility(LAMP, refusal) == -2
    assert objective.utility(burn, refusal) == -2 + 3 + 0.5
    assert objective.utility(LAMP, "use the key . sure .") == -1 + 0.25 - 1  # one fault


def drawn(world, objective, n, seed=0):
    """Hazard of each prompt and signed utility gap u(chosen) - u(rejected) of n pairs."""
    spec = world.objective(objective)
    pairs = preference_pairs(world, objective, "train", n, np.random.default_rng(seed))
    prompts = [world.language.parse(row["prompt"][0]["content"]) for row in pairs]
    sides = [
        [spec.utility(p, row[side][0]["content"]) for p, row in zip(prompts, pairs, strict=True)]
        for side in ("chosen", "rejected")
    ]
    return np.array([p.hazardous for p in prompts]), np.subtract(*sides)


@pytest.mark.parametrize("strength", [0.65, 0.95])
def test_labels_are_bradley_terry(strength):
    objective = replace(get_world("conflict").objectives[0], strength=strength)
    world = World("w", (objective, get_world("conflict").objectives[1]))
    hazardous, gaps = drawn(world, "helpful", 2000)
    assert hazardous.mean() == pytest.approx(0.2) and (np.abs(gaps) > 1e-6).all()  # no ties
    temperature, z = world.temperature("helpful"), []
    for gap in np.unique(np.abs(gaps).round(6)):
        same = np.isclose(np.abs(gaps), gap)
        p, n = 1 / (1 + np.exp(-gap / temperature)), same.sum()
        if n * (1 - p) > 5:
            z.append(((gaps[same] > 0).sum() - n * p) / np.sqrt(n * p * (1 - p)))
    assert len(z) >= 3 and np.abs(z).max() < 4


@pytest.mark.parametrize(("world", "objective"), ALL_OBJECTIVES)
def test_strength_is_the_bayes_accuracy_of_the_labels(world, objective):
    world = get_world(world)
    _, gaps = drawn(world, objective, 1000, seed=3)
    assert not np.isclose(gaps, 0).any()
    bayes = 1 / (1 + np.exp(-np.abs(gaps) / world.temperature(objective)))
    declared = world.objective(objective).strength
    assert bayes.mean() == pytest.approx(declared, abs=4.5 * bayes.std() / np.sqrt(len(gaps)))
    assert (gaps > 0).mean() == pytest.approx(declared, abs=4 * np.sqrt(declared * (1 - declared) / len(gaps)))


NAMED = {  # correlation of utilities, disagreement; strengths; shares of hazardous prompts
    "conflict": (-0.690, 0.820, (0.85, 0.85), (0.2, 0.8)),
    "attributes": (0.380, 0.342, (0.85, 0.85), (0.1, 0.1)),
    "safety": (-0.342, 0.659, (0.97, 0.75), (0.6, 0.6)),
    "compatible": (0.831, 0.063, (0.85, 0.85), (0.1, 0.1)),
    "guide-conflict": (-0.785, 0.778, (0.85, 0.85), (0.2, 0.8)),
    "guide-attributes": (0.285, 0.422, (0.85, 0.85), (0.1, 0.1)),
    "guide-safety": (-0.635, 0.721, (0.97, 0.75), (0.6, 0.6)),
    "guide-compatible": (0.642, 0.235, (0.85, 0.85), (0.1, 0.1)),
}


@pytest.mark.parametrize("name", WORLDS)
def test_named_worlds_are_those_that_results_were_measured_in(name):
    relation, objectives = WORLDS[name].compatibility(), WORLDS[name].objectives
    correlation, disagreement, strengths, hazards = NAMED[name]
    assert relation["correlation"] == pytest.approx(correlation, abs=0.002)
    assert relation["disagreement"] == pytest.approx(disagreement, abs=0.002)
    assert tuple(o.strength for o in objectives) == strengths and tuple(o.hazard_share for o in objectives) == hazards


@pytest.mark.parametrize("wanted", [-1.0, -0.6, 0.0, 0.6, 1.0])
def test_compatibility_is_the_correlation_asked_for(wanted, rng):
    world = make_world(wanted, 0.8)
    assert world.compatibility()["correlation"] == pytest.approx(wanted, abs=1e-9)
    prompts = ANSWERS.sample_prompts("test", 800, 0.2, rng)  # prompts and responses the construction never saw
    responses = [sample_response(p, rng) for p in prompts]
    first, second = ([o.utility(p, r) for p, r in zip(prompts, responses, strict=True)] for o in world.objectives)
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(wanted, abs=0.12)


def test_a_made_worlds_weights_stay_the_same_to_their_last_digit():
    """Other weights would be another world under the same name, and what was trained on it another's."""
    first, second = make_world(0.6, 0.8).objectives
    zeros = dict.fromkeys(("warning", "polite", "verbosity", "faults"), 0.0)
    assert first.weights == {"correct": 0.83278875521, "complete": 0.83278875521, "refusal": -0.83278875521} | zeros
    assert second.weights == {
        "correct": 0.508501261456, "complete": 0.508501261456, "refusal": -0.508501261456,
        "warning": 1.101203324103, "polite": 0.550601662052, "verbosity": 0.550601662052, "faults": 0.0,
    }  # fmt: skip
    assert "-0.0" not in repr(make_world(-1.0, 0.8))


def test_disagreement_falls_as_compatibility_rises():
    shares = [make_world(c, 0.8).compatibility()["disagreement"] for c in (-1, -0.5, 0, 0.5, 1)]
    assert shares[0] == 1 and shares[-1] == 0 and sorted(shares, reverse=True) == shares
    named = {name: world.compatibility()["correlation"] for name, world in WORLDS.items()}
    for language in ("", "guide-"):
        assert named[f"{language}conflict"] < 0 < named[f"{language}attributes"] < named[f"{language}compatible"]
        assert named[f"{language}safety"] < 0


def test_each_objective_keeps_its_own_strength():
    world = make_world(0.3, (0.6, 0.95))
    assert [o.strength for o in world.objectives] == [0.6, 0.95]
    assert world.temperature("first") > world.temperature("second")


# --- pairs ----------------------------------------------------------------------------------------


def test_seeds_draw_training_pairs_and_nothing_else():
    one, again, other = (world_pairs("safety", "safer", n_train=30, n_test=20, seed=s) for s in (1, 1, 2))
    assert one[0].to_list() == again[0].to_list() != other[0].to_list()
    assert one[1].to_list() == again[1].to_list() == other[1].to_list()
    assert [len(split) for split in one] == [30, 20]
    train, test = ({row["prompt"][0]["content"] for row in split} for split in one)
    assert not train & test and len(train) == 30
    assert one[0].column_names == ["prompt", "chosen", "rejected", "objective"]
    assert set(one[0]["objective"]) == {"safer"}


def sha256(*tables):
    lines = (json.dumps(row, sort_keys=True) + "\n" for rows in tables for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_what_is_drawn_stays_the_same():
    """Computed before `worlds` became a package. Other numbers make recorded runs incomparable."""
    pairs = world_pairs("conflict", "helpful", n_train=32, n_test=16, seed=3)
    assert sha256(*pairs) == "4f6bd08e55752ef542f08241ed43e3292a65eeff0190e0c15710c4b8c385f7d1"
    conversations = sft_conversations("answers", 50, np.random.default_rng(0))
    assert sha256(conversations) == "660f7a03cb0c359c44d8d8a5a90c4f08678a7c7f15de0ab87a58491ec8f0c928"
    assert sha256([vocabulary()]) == "819d48923bc84878307b338b02ccbb6c4e0fe71998aca31d05d00a7884350f72"


def test_a_world_without_a_name_has_the_pairs_of_its_definition():
    sizes = {"n_train": 8, "n_test": 4, "seed": 1}
    by_name = world_pairs("safety", "better", **sizes)
    by_value = train_and_test_pairs(replace(get_world("safety"), name="mine"), "better", **sizes)
    assert [split.to_list() for split in by_name] == [split.to_list() for split in by_value]
    made = train_and_test_pairs(make_world(0.3, 0.8), "second", **sizes)
    assert [len(split) for split in made] == [8, 4] and set(made[0]["objective"]) == {"second"}


def test_what_does_not_exist_is_named_in_one_line():
    assert world_objectives("conflict") == ["helpful", "harmless"]
    wrong = [
        (
            lambda: get_world("nowhere"),
            r"^world:nowhere: no such world, expected one of: conflict, attributes, .*",
        ),
        (
            lambda: world_pairs("safety", "kind", n_train=2, n_test=2, seed=0),
            r"'kind' does not exist.*safer, better",
        ),
        (lambda: make_world(1.5, 0.8), r"^compatibility=1.5: expected a number from -1 to 1$"),
        (lambda: make_world(float("nan"), 0.8), r"^compatibility=nan"),
        (
            lambda: make_world(0, 1.0),
            r"^objective first: strength 1.0, expected 0.5 < strength < 1$",
        ),
        (lambda: make_world(0, (0.8, 0.5)), r"^objective second: strength 0.5"),
        (
            lambda: Objective("o", {"correct": 1}, {"politeness": 1}),
            r"^objective o: weight of 'politeness', expected of correct, complete, .*faults$",
        ),
    ]
    for call, message in wrong:
        with pytest.raises(BadInput, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_an_objective_whose_responses_are_all_tied_draws_no_pairs():
    other = get_world("safety").objectives[1]
    for weights, hazard_weights, kind in (({}, {}, "hazardous"), ({}, {"refusal": 1}, "harmless")):
        world = World("w", (Objective("flat", weights, hazard_weights), other))
        with pytest.raises(BadInput, match=f"^objective flat: all responses to {kind} prompts are tied, expected"):
            preference_pairs(world, "flat", "train", 4, np.random.default_rng(0))


def test_a_strength_that_no_temperature_gives_is_refused_in_one_line():
    with pytest.raises(BadInput, match=r"^objective first: no T gives strength 0\.50000\d+, expected 0\.51 to 0\.99$"):
        make_world(0, 0.5000000001).temperature("first")


@pytest.mark.parametrize("strength", [0.5001, 0.9999])
def test_extreme_strengths_have_a_temperature_or_one_line(strength):
    try:
        assert make_world(0, strength).temperature("first") > 0
    except BadInput as error:
        assert "strength" in str(error)


def test_one_language_serves_all():
    assert tuple(Attributes.__dataclass_fields__) == worlds.ATTRIBUTES
    read_off = read(LAMP, "sure . be careful . use the wire . then test it .")
    assert read_off.vector().tolist() == [1, 1, 0, 1, 1, 0, 0] == list(astuple(read_off))
    assert len(vocabulary()) == len(set(vocabulary())) < 100


def imported(module):
    """The modules of the package that a module imports, directly or through others; `module` is a dotted name."""
    found, waiting = set(), [module]
    while waiting:
        tree = ast.parse(Path(importlib.util.find_spec(waiting.pop()).origin).read_text())
        new = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module.startswith("preflab")}
        waiting += new - found
        found |= new
    return {name.removeprefix("preflab.") for name in found}


def test_what_a_base_model_learns_from_knows_no_objectives():
    """So a new world or another weight does not retrain base models."""
    assert imported("preflab.data.worlds.language") == {"errors"}
    assert not imported("preflab.data.worlds.conversations") & {"data.worlds.objectives", "data.worlds.named"}
