"""The longer language, pairs with two labels, shifted pairs, and random worlds."""

import itertools
from dataclasses import astuple, replace

import numpy as np
import pytest
from scipy.special import expit, logit

from preflab.data.worlds import GUIDES, Objective, RandomWorld, World, get_world, preference_pairs, world_pairs
from preflab.data.worlds.guides import words
from preflab.data.worlds.guides.grammar import Prompt
from preflab.data.worlds.guides.oracle import ATTRIBUTES, read, suits
from preflab.data.worlds.language import tilted
from preflab.errors import BadInput

SELL = Prompt("sell", "wet", "lamp", "at home", "for a friend")  # wipe, label; cloth; bulb, stand; bench; kindly
FIRST, SECOND = "first kindly wipe the bulb with the cloth .", "second kindly label the stand with the cloth ."


def subsequence(needed, said):
    """Length of the longest common subsequence, by trying every choice of what is needed."""
    choices = (c for n in range(len(needed), -1, -1) for c in itertools.combinations(needed, n))
    return next(len(c) for c in choices if any(c == d for d in itertools.combinations(said, len(c))))


def built(prompt, rng):
    """A response put together from parts, and its attributes by their definition: knows nothing of parsing."""
    opening, warning, closing = rng.random(3) < 0.5
    details = [d for d in words.DETAILS if rng.random() < 0.4]
    spot, helper = words.SPOT_OF[prompt.place]
    sentences = [str(rng.choice(words.OPENINGS))] if opening else []
    sentences += [f"take care with the {prompt.object}"] if warning else []
    refusal, said, hits, done, place = rng.random() < 0.3, [], [], [], 0
    if refusal:
        sentences.append(f"sorry i can not help you {prompt.action} the {prompt.object}")
        if rng.random() < 0.6:
            whom = str(rng.choice(words.HELPERS))
            sentences.append(f"ask the {whom} first")
            place = 1 if whom == helper else -1
    else:
        if rng.random() < 0.6:
            where = str(rng.choice(words.SPOTS))
            sentences.append(f"work at the {where}")
            place = 1 if where == spot else -1
        for ordinal in words.ORDINALS[: rng.integers(1, 6)]:
            verb = rng.choice([*words.PROCEDURE_OF[prompt.action], str(rng.choice(words.VERBS))])
            part = rng.choice([*words.PARTS_OF[prompt.object], str(rng.choice(words.PARTS))])
            tool, adverb = rng.choice(words.TOOLS), rng.choice(words.ADVERBS)
            sentences.append(f"{ordinal} {adverb} {verb} the {part} with the {tool}")
            said.append(str(verb))
            hits += [part in words.PARTS_OF[prompt.object], tool == words.TOOL_OF[prompt.condition]]
            done.append(adverb == words.ADVERB_OF[prompt.manner])
    sentences += details + ([str(rng.choice(words.CLOSINGS))] if closing else [])
    polite, needed = int(opening) + int(closing), words.PROCEDURE_OF[prompt.action]
    style = {
        "with care": warning,
        "in a hurry": not details and not polite,
        "in detail": len(details) >= 2,
        "for a friend": polite == 2,
    }[prompt.manner]
    fit = [1 if style else -1] + ([2 * np.mean(done) - 1] if done else [])
    known = (
        2 * np.mean(hits) - 1 if hits else 0,
        subsequence(needed, said) / max(len(needed), len(said)),
        place,
        np.mean(fit),
        *(int(refusal), int(warning), polite, len(details), 0),
    )
    return " ".join(f"{s} ." for s in sentences), known


def test_the_oracle_inverts_what_is_built_from_parts(rng):
    prompts = GUIDES.prompts("test")
    for prompt in (prompts[i] for i in rng.permutation(len(prompts))[:600]):
        response, known = built(prompt, rng)
        assert astuple(read(prompt, response)) == pytest.approx(known), response


def test_what_is_sampled_is_well_formed_varied_and_long_enough(rng):
    prompts = GUIDES.sample_prompts("train", 1500, 0.3, rng)
    drawn = [GUIDES.respond(p, rng, 0.0) for p in prompts]
    found = [read(p, r) for p, r in zip(prompts, drawn, strict=True)]
    assert not any(a.faults for a in found) and len(set(drawn)) > 1450
    assert all(np.std([getattr(a, name) for a in found]) > 0.3 for name in ATTRIBUTES if name != "faults")
    answers = [len(r.split()) for r, a in zip(drawn, found, strict=True) if not a.refusal]
    assert 40 <= np.mean(answers) <= 60 and np.mean(np.greater(answers, 80)) < 0.01
    assert 0.01 < np.mean([a.solved for a in found]) < 0.1
    assert set(" ".join([*drawn, *map(str, prompts)]).split()) <= set(GUIDES.vocabulary())


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", (0, 0, 0, -1, 0, 0, 0, 0, 1)),
        (f"{FIRST} {SECOND}", (1, 1, 0, 0, 0, 0, 0, 0, 0)),
        (f"sure . {FIRST} {SECOND} good luck .", (1, 1, 0, 1, 0, 0, 2, 0, 0)),
        (f"{FIRST} {SECOND} good luck", (1, 1, 0, 0, 0, 0, 0, 0, 1)),  # no full stop
        (f"{FIRST} {FIRST}", (1, 0.5, 0, 0, 0, 0, 0, 0, 2)),  # repeated, and not the second
        (f"{SECOND} {FIRST}", (1, 0.5, 0, 0, 0, 0, 0, 0, 2)),  # both ordinals are wrong, and so is the order
        (f"{FIRST} work at the bench .", (1, 0.5, 1, 0, 0, 0, 0, 0, 1)),  # out of order
        (f"work at the bench . work at the desk . {FIRST}", (1, 0.5, -1, 0, 0, 0, 0, 0, 1)),
        ("first kindly wipe the bulb with the lamp .", (0, 0, 0, -1, 0, 0, 0, 0, 2)),  # a lamp is no tool
        ("first kindly wipe the bulb .", (0, 0, 0, -1, 0, 0, 0, 0, 2)),
        ("take care with the boat . take care with the lamp .", (0, 0, 0, -1, 0, 1, 0, 0, 2)),
        ("sorry i can not help you sell the lamp .", (0, 0, 0, -1, 1, 0, 0, 0, 0)),
        ("sorry i can not help you sell the boat .", (0, 0, 0, -1, 0, 0, 0, 0, 2)),  # nobody asked for that
        (f"sorry i can not help you sell the lamp . {FIRST}", (1, 0.5, 0, 0, 1, 0, 0, 0, 1)),
        (2 * "sorry i can not help you sell the lamp . ", (0, 0, 0, -1, 1, 0, 0, 0, 2)),  # said twice is refused once
        (f"ask the owner first . {FIRST}", (1, 0.5, 1, 0, 0, 0, 0, 0, 1)),  # a referral without a refusal
        ("work at the bench .", (0, 0, 1, -1, 0, 0, 0, 0, 2)),
        ("sorry i can not help you sell the lamp . work at the bench .", (0, 0, 1, -1, 1, 0, 0, 0, 1)),
    ],
)
def test_broken_responses_by_hand(response, expected):
    assert astuple(read(SELL, response)) == expected


def test_the_oracle_reads_anything(rng):
    known = np.array([*GUIDES.vocabulary(), ".", ".", "?", "<eos>", "", "x"])
    ranges = [(-1, 1), (0, 1), (-1, 1), (-1, 1), (0, 1), (0, 1), (0, 2), (0, 4), (0, 100)]
    for _ in range(500):
        attributes = read(SELL, " ".join(rng.choice(known, size=rng.integers(0, 60))))
        assert all(lo <= a <= hi for a, (lo, hi) in zip(astuple(attributes), ranges, strict=True))


def test_every_part_of_a_prompt_decides_something():
    """So an answer that is right for one prompt is right for no other: here each part is changed alone."""
    response = f"sure . work at the bench . {FIRST} {SECOND} good luck ."
    best = np.array(astuple(read(SELL, response)))
    others = {"action": "clean", "condition": "dusty", "object": "radio", "place": "at sea", "manner": "in detail"}
    lost = {
        part: ATTRIBUTES[
            int(np.flatnonzero(np.array(astuple(read(replace(SELL, **{part: word}), response))) < best)[0])
        ]
        for part, word in others.items()
    }
    assert lost == {
        "action": "complete",
        "condition": "correct",
        "object": "correct",
        "place": "place",
        "manner": "fit",
    }


def test_no_style_is_the_best_for_every_prompt():
    found = {
        (manner, *style): suits(manner, *style)
        for manner in words.ADVERB_OF
        for style in itertools.product((0, 1), (0, 1, 2), range(4))
    }
    for style in itertools.product((0, 1), (0, 1, 2), range(4)):
        assert sum(found[manner, *style] for manner in words.ADVERB_OF) <= 3


def test_prompts_round_trip_and_are_split_by_combination():
    train, test = GUIDES.prompts("train"), GUIDES.prompts("test")
    assert len({*train, *test}) == len(train) + len(test) == 12 * 8 * 12 * 6 * 4
    assert len(test) / len(train + test) == pytest.approx(0.2, abs=0.01)
    assert all(GUIDES.parse(str(prompt)) == prompt for prompt in test)
    for position in range(5):  # every word of a held-out prompt is known; only their combination is new
        assert {astuple(p)[position] for p in test} == {astuple(p)[position] for p in train}
    for text in (
        "",
        str(SELL)[:-2],
        f"{SELL} please",
        str(SELL).replace("lamp", "moon"),
        "how do i fix the old lamp at home ?",
    ):
        with pytest.raises(BadInput, match="expected 'how do i ACTION the CONDITION OBJECT PLACE MANNER"):
            GUIDES.parse(text)


# --- two labels on one pair ------------------------------------------------------------------------


def contents(rows):
    return [{row["chosen"][0]["content"], row["rejected"][0]["content"]} for row in rows]


def test_both_objectives_of_safety_label_the_same_pairs():
    world = get_world("guide-safety")
    labelled = [world_pairs("guide-safety", o.name, n_train=400, n_test=60, seed=3) for o in world.objectives]
    for one, other in zip(*labelled, strict=True):
        assert one["prompt"] == other["prompt"] and contents(one) == contents(other)
        assert all(len(pair) == 2 for pair in contents(one))
    (train, _), (other, _) = labelled
    agree = np.mean([a == b for a, b in zip(train["chosen"], other["chosen"], strict=True)])
    assert 0.3 < agree < 0.7  # the labels are each objective's own
    for rows, objective in zip((train, other), world.objectives, strict=True):
        gaps = gaps_of(world, objective, rows)
        assert np.mean(gaps > 0) == pytest.approx(objective.strength, abs=0.08)


def gaps_of(world, objective, rows):
    prompts = [GUIDES.parse(row["prompt"][0]["content"]) for row in rows]
    u, v = (
        np.array([objective.utility(p, row[side][0]["content"]) for p, row in zip(prompts, rows, strict=True)])
        for side in ("chosen", "rejected")
    )
    return u - v


def test_labels_of_the_same_pairs_are_noisy_each_for_itself():
    """Two objectives of equal weights and one strength still disagree where the labels are noisy."""
    weights = {"correct": 1.0, "refusal": -1.0}
    twins = tuple(Objective(name, weights, strength=0.7, language="guides") for name in ("one", "two"))
    world = World("twins", twins, same_pairs=True)
    one, two = (preference_pairs(world, o.name, "train", 600, np.random.default_rng(5)) for o in twins)
    agree = np.mean([a == b for a, b in zip(one["chosen"], two["chosen"], strict=True)])
    p = expit(np.abs(gaps_of(world, twins[0], one)) / world.temperature("one"))
    assert agree == pytest.approx(np.mean(p**2 + (1 - p) ** 2), abs=0.08)
    assert agree < 0.75


def test_worlds_that_cannot_be():
    one, other = get_world("guide-safety").objectives
    with pytest.raises(BadInput, match="guides and answers, expected one language"):
        World("mixed", (one, get_world("conflict").objectives[0]))
    with pytest.raises(BadInput, match="labels on the same pairs, expected one hazard_share"):
        World("w", (one, replace(other, hazard_share=0.1)), same_pairs=True)
    with pytest.raises(BadInput, match="weight of 'place', expected of correct, complete, refusal"):
        Objective("o", {"place": 1.0})


# --- how far the pairs are from the base model ------------------------------------------------------


def test_a_shift_moves_every_rate_by_the_same_log_odds(rng):
    assert tilted(0.3, 0) == 0.3
    assert logit(tilted(0.3, 0.7)) - logit(0.3) == pytest.approx(0.7)
    prompts = GUIDES.sample_prompts("train", 1200, 0.0, rng)
    for shift in (-1.0, 1.0):
        found = [read(p, GUIDES.respond(p, rng, shift)) for p in prompts]
        assert not any(a.faults for a in found)
        assert np.mean([a.warning for a in found]) == pytest.approx(tilted(0.35, shift), abs=0.05)
        assert np.mean([a.refusal for a in found]) == pytest.approx(tilted(0.15, shift), abs=0.05)


def test_a_shifted_world_has_other_pairs_and_keeps_its_strength():
    plain, far = get_world("guide-conflict"), get_world("guide-conflict(shift=1.5)")
    assert [get_world(f"guide-conflict(shift={end})").shift for end in (-3, 3)] == [-3, 3]  # as far as it goes
    assert far.objectives == plain.objectives and far.shift == 1.5 and far.name == "guide-conflict(shift=1.5)"
    rows = preference_pairs(far, "helpful", "train", 400, np.random.default_rng(0))
    gaps = gaps_of(far, far.objective("helpful"), rows)
    assert np.mean(gaps > 0) == pytest.approx(0.85, abs=0.07)
    right = [
        np.mean([read(GUIDES.parse(r["prompt"][0]["content"]), r["chosen"][0]["content"]).solved for r in drawn])
        for drawn in (rows, preference_pairs(plain, "helpful", "train", 400, np.random.default_rng(0)))
    ]
    assert right[0] > 3 * right[1]


# --- random worlds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compatibility", [-0.8, -0.3, 0.0, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_random_world_has_the_compatibility_asked_for(compatibility, seed):
    world = get_world(f"random(seed={seed},compatibility={compatibility})")
    assert world.compatibility()["correlation"] == pytest.approx(compatibility, abs=1e-6)
    assert [o.strength for o in world.objectives] == [0.85, 0.85]


def test_what_a_random_world_is_given_moves_nothing_else():
    def world(**other):
        return RandomWorld(**{"seed": 4, "compatibility": -0.4} | other).world("w")

    one, other = world().objectives
    assert world(seed=5).objectives[0].weights != one.weights
    stronger = world(strength=0.97, strength2=0.7).objectives
    assert [o.weights for o in stronger] == [one.weights, other.weights]
    assert [o.strength for o in stronger] == [0.97, 0.7]
    mixed = world(hazard=0.5, hazard2=0.1)
    assert [o.hazard_share for o in mixed.objectives] == [0.5, 0.1] and list(mixed.objectives[0].weights) == list(
        one.weights
    )
    assert len(one.weights) == 4 and len(other.weights) == 8
    fewer = RandomWorld(seed=4, compatibility=0.2, shared=2).world("w")
    assert len(set(fewer.objectives[0].weights) & set(fewer.objectives[1].weights)) == 2
    assert len(fewer.objectives[1].weights) == 6
    assert fewer.compatibility()["correlation"] == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random(seed=1)", r"world:random\(seed=1\): compatibility"),
        ("random(seed=1,compatibility=2)", "compatibility: Input should be less than 1"),
        ("random(seed=1,compatibility=0.99,shared=1)", r"expected -?from -\d|compatibility=0.99: expected from"),
        ("random(seed=1.5,compatibility=0.1)", "seed: Input should be a valid integer"),
        ("random(seed=1,compatibility=0.1,strength=0.4)", "strength: Input should be greater than 0.5"),
        ("random(seed=1,kind=2,compatibility=0.1)", "kind: Unexpected keyword argument"),
        ("random(1,0.5)", r"expected random\(NAME=NUMBER,\.\.\.\)"),
        ("random(seed=1,compatibility=0.1", r"expected random\(NAME=NUMBER,\.\.\.\)"),
        ("guide-conflict(shift=9)", "expected shift=NUMBER from -3 to 3"),
        ("guide-conflict(shift=3.01)", "expected shift=NUMBER from -3 to 3"),
        ("guide-conflict(shift=-3.01)", "expected shift=NUMBER from -3 to 3"),
        ("guide-conflict(drift=1)", "expected shift=NUMBER from -3 to 3"),
        ("guide-nowhere(shift=1)", "no such world"),
    ],
)
def test_names_that_make_no_world(name, message):
    with pytest.raises(BadInput, match=message) as error:
        get_world(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
