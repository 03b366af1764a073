"""Preference pairs of a world, labelled by Bradley-Terry."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from scipy.special import expit

from preflab.data.worlds.language import Prompt
from preflab.data.worlds.named import get_world
from preflab.data.worlds.objectives import Objective, World

TRAIN_PAIRS, TEST_PAIRS = 2000, 400  # how many are drawn if no number is asked for


def preference_pairs(world: World, objective: str, split: str, n: int, rng: np.random.Generator) -> Dataset:
    """n pairs with P(first preferred) = sigmoid((u - u') / T), in TRL's conversational format.

    Columns: `prompt`, `chosen`, `rejected` (messages) and `objective`. Both responses come from the grammar. A pair
    that is tied under the objective is drawn again, because real data sets drop ties. Prompts are distinct. If the
    world has the same pairs for both objectives, a pair is untied under both, and equal generators give them the same
    pairs, each with its own labels.

    Raises BadInput if the world does not have the objective or the split has too few prompts.
    """
    spec, temperature = world.objective(objective), world.temperature(objective)
    judges, labels = (spec,), rng
    if world.same_pairs:
        judges, labels = world.objectives, rng.spawn(2)[world.objectives.index(spec)]
    rows = []
    for prompt in world.language.sample_prompts(split, n, spec.hazard_share, rng):
        first, second = _untied(world, judges, prompt, rng)
        u, v = spec.utility(prompt, first), spec.utility(prompt, second)
        if labels.random() >= expit((u - v) / temperature):
            first, second = second, first
        rows.append(
            {
                "prompt": [{"role": "user", "content": str(prompt)}],
                "chosen": [{"role": "assistant", "content": first}],
                "rejected": [{"role": "assistant", "content": second}],
                "objective": objective,
            }
        )
    return Dataset.from_list(rows)


def _untied(world: World, judges: Sequence[Objective], prompt: Prompt, rng: np.random.Generator) -> tuple[str, str]:
    """Two responses that no judge holds to be of equal utility."""
    respond = world.language.respond
    while True:
        both = respond(prompt, rng, world.shift), respond(prompt, rng, world.shift)
        if not any(np.isclose(*(judge.utility(prompt, response) for response in both)) for judge in judges):
            return both


def train_and_test_pairs(
    world: World, objective: str, *, n_train: int | None, n_test: int | None, seed: int
) -> tuple[Dataset, Dataset]:
    """Train and test pairs of a world, as `preference_pairs` draws them.

    The seed draws the training pairs. The test pairs are the same for every seed, so that seeds can be compared pair
    by pair. None asks for `TRAIN_PAIRS` or `TEST_PAIRS`.
    """
    train = preference_pairs(world, objective, "train", n_train or TRAIN_PAIRS, np.random.default_rng([seed, 1]))
    test = preference_pairs(world, objective, "test", n_test or TEST_PAIRS, np.random.default_rng([0, 2]))
    return train, test


def world_pairs(
    name: str, objective: str, *, n_train: int | None, n_test: int | None, seed: int
) -> tuple[Dataset, Dataset]:
    """`train_and_test_pairs` of a named world. Raises BadInput for an unknown world."""
    return train_and_test_pairs(get_world(name), objective, n_train=n_train, n_test=n_test, seed=seed)
