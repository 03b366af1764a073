"""Worlds by name: one for each setting of paper S (arXiv 2606.19744) in both languages, and worlds made to order.

`made(-0.5,0.85)` names the world of `make_world(-0.5, 0.85)`, `made(0.3,0.97,0.75)` that of two strengths.
`random(seed=3,compatibility=-0.4)` names a `RandomWorld`, and `guide-conflict(shift=0.5)` a world with other pairs. A
name is text, so parameters can hold it, and a worker process makes the same world of it.
"""

import re
from dataclasses import replace
from functools import cache

from pydantic import ValidationError

from preflab.data.worlds.drawn import RandomWorld
from preflab.data.worlds.made import make_world
from preflab.data.worlds.objectives import Objective, World
from preflab.errors import BadInput, shown

NUMBER = r"([+-]?\d+(?:\.\d+)?)"
MADE = re.compile(rf"made\({NUMBER}, ?{NUMBER}(?:, ?{NUMBER})?\)", re.ASCII)
GIVEN = re.compile(rf"([a-z0-9]+)={NUMBER}", re.ASCII)

WORLDS = {
    world.name: world
    for world in (
        # Stands for HH-RLHF: each objective has its own prompts; on shared prompts the objectives pull apart.
        World("conflict", (
            Objective("helpful", {"correct": 1, "complete": 1, "refusal": -2, "polite": 0.25}, hazard_share=0.2),
            Objective("harmless", {"refusal": 1, "warning": 0.5}, {"refusal": 1.5, "warning": 0.5}, hazard_share=0.8),
        )),
        # Stands for HelpSteer2: correlated quality attributes of the same responses.
        World("attributes", (
            Objective("helpfulness", {"correct": 1, "complete": 1, "refusal": -1, "polite": 0.5}, hazard_share=0.1),
            Objective("verbosity", {"verbosity": 1, "polite": 0.5, "complete": 0.5, "refusal": -0.5}, hazard_share=0.1),
        )),
        # Stands for PKU-SafeRLHF: two labels on prompts of one kind; the label `safer` is much cleaner.
        World("safety", (
            Objective("safer", {"warning": 0.5}, {"refusal": 3, "warning": 1}, hazard_share=0.6, strength=0.97),
            Objective("better", {"correct": 1, "complete": 0.75, "refusal": -1, "polite": 0.25},
                      {"refusal": 0.5}, hazard_share=0.6, strength=0.75),
        )),
        # Stands for UltraFeedback: two aspects of response quality that mostly agree.
        World("compatible", (
            Objective("instruction_following", {"correct": 1, "complete": 1, "refusal": -1}, hazard_share=0.1),
            Objective("truthfulness", {"correct": 1.5, "complete": 0.25, "warning": 0.25}, hazard_share=0.1),
        )),
        # The same four settings in the longer language.
        World("guide-conflict", (
            Objective("helpful", {"correct": 1.5, "complete": 1.5, "place": 0.5, "fit": 0.5, "refusal": -2},
                      hazard_share=0.2, language="guides"),
            Objective("harmless", {"refusal": 1, "warning": 0.5}, {"refusal": 1.5, "warning": 0.5},
                      hazard_share=0.8, language="guides"),
        )),
        World("guide-attributes", (
            Objective("helpfulness", {"correct": 1.5, "complete": 1.5, "place": 0.5, "fit": 0.5, "refusal": -1},
                      hazard_share=0.1, language="guides"),
            Objective("verbosity", {"verbosity": 1, "polite": 0.5, "complete": 0.5, "refusal": -0.5},
                      hazard_share=0.1, language="guides"),
        )),
        World("guide-safety", (
            Objective("safer", {"warning": 0.5}, {"refusal": 3, "warning": 1},
                      hazard_share=0.6, strength=0.97, language="guides"),
            Objective("better", {"correct": 1.5, "complete": 1.5, "fit": 0.5, "refusal": -1}, {"refusal": 0.5},
                      hazard_share=0.6, strength=0.75, language="guides"),
        ), same_pairs=True),
        World("guide-compatible", (
            Objective("instruction_following", {"complete": 1.5, "place": 0.5, "fit": 1, "correct": 0.5, "refusal": -1},
                      hazard_share=0.1, language="guides"),
            Objective("truthfulness", {"correct": 2, "complete": 0.5, "place": 0.5, "warning": 0.25},
                      hazard_share=0.1, language="guides"),
        )),
    )
}  # fmt: skip


def get_world(name: str) -> World:
    """The world of this name. Raises BadInput for a name that is unknown, and for numbers that make no world."""
    if name in WORLDS:
        return WORLDS[name]
    if name.startswith("made"):
        return _made(name)
    before, bracket, rest = name.partition("(")
    if bracket and (before == "random" or before in WORLDS):
        return _given(name, before, rest)
    known = ", ".join(WORLDS)
    raise BadInput(
        f"world:{name}: no such world, expected one of: {known}, made(COMPATIBILITY,STRENGTH), "
        "random(seed=N,compatibility=C)"
    )


@cache
def _given(name: str, before: str, rest: str) -> World:
    """A random world, or a named one with a shift."""
    found = [GIVEN.fullmatch(part.strip()) for part in rest.removesuffix(")").split(",")]
    if not rest.endswith(")") or not all(found):
        raise BadInput(f"world:{name}: expected {before}(NAME=NUMBER,...)")
    given = {key: float(number) if "." in number else int(number) for key, number in (f.groups() for f in found)}
    try:
        if before == "random":
            return _checked(RandomWorld(**given).world(name))
        if list(given) != ["shift"] or not -3 <= given["shift"] <= 3:
            raise BadInput(f"{shown(given)}: expected shift=NUMBER from -3 to 3")
        return _checked(replace(WORLDS[before], name=name, shift=float(given["shift"])))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"world:{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except BadInput as error:
        raise BadInput(f"world:{name}: {error}") from None


def _checked(world: World) -> World:
    for objective in world.objectives:
        world.temperature(objective.name)  # now, not after an hour of training
    return world


@cache
def _made(name: str) -> World:
    found = MADE.fullmatch(name)
    if not found:
        raise BadInput(
            f"world:{name}: expected made(COMPATIBILITY,STRENGTH), or with a strength for each objective "
            "made(COMPATIBILITY,STRENGTH,STRENGTH), such as made(-0.5,0.85)"
        )
    compatibility, *strengths = (float(number) for number in found.groups() if number)
    try:
        return _checked(make_world(compatibility, (strengths[0], strengths[-1]), name))
    except BadInput as error:
        raise BadInput(f"world:{name}: {error}") from None


def world_objectives(name: str) -> list[str]:
    """The names of the two objectives of a world. Raises BadInput as `get_world`."""
    return [objective.name for objective in get_world(name).objectives]
