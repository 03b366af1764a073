"""Win rates: who answers better, prompt by prompt. Ties count half."""

import numpy as np
import torch

from preflab import dynamics, rewards
from preflab.dynamics import Answers
from preflab.parameters import DynamicsSettings


def judged(p: DynamicsSettings, answers: Answers, greedy: bool) -> np.ndarray:
    """The judge's score of each response to the held-out prompts, (prompts,): the oracle's utility in a world,
    else the reward model's score, which is no independent judge of what was trained on it."""
    prompts = dynamics.held_out_prompts(p)
    if spec := dynamics.objective_of(p):
        return rewards.utilities(spec, prompts, answers.final_texts if greedy else answers.sampled_texts)
    scores = dynamics.reward_of(p)(prompts, answers.final if greedy else answers.sampled)
    return scores.to(torch.float64).numpy()


def wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """1 where our response scores higher, 1/2 where both score the same, else 0; the arrays' shape."""
    return np.where(np.isclose(ours, theirs), 0.5, (ours > theirs).astype(float))


def distinct(texts: list[str], n: int) -> float:
    """Share of different n-grams of words among all of them (distinct-n)."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)
