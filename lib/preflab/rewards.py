"""What PPO is rewarded by: the oracle of a world, or a reward model of known quality."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.special import expit
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from preflab.data import worlds
from preflab.errors import BadInput
from preflab.generation import Sample, decode
from preflab.likelihood import collate_responses, token_log_probs
from preflab.models import load_model

Reward = Callable[[list[list[dict]], list[Sample]], torch.Tensor]  # prompts, samples: (n,)
SCORING_BATCH = 128  # responses


def oracle_reward(objective: worlds.Objective, tokenizer: PreTrainedTokenizerBase) -> Reward:
    """The utility that the oracle reads off a response."""

    def score(prompts: list[list[dict]], samples: list[Sample]) -> torch.Tensor:
        return torch.tensor(utilities(objective, prompts, decode(tokenizer, samples)), dtype=torch.float64)

    return score


def correctness_reward(language: str, tokenizer: PreTrainedTokenizerBase) -> Reward:
    """A language's verifiable reward: 1 where the response does what is asked (`solved`), else 0."""

    def score(prompts: list[list[dict]], samples: list[Sample]) -> torch.Tensor:
        return torch.tensor(correct(language, prompts, decode(tokenizer, samples)), dtype=torch.float64)

    return score


def correct(language: str, prompts: list[list[dict]], texts: list[str]) -> np.ndarray:
    """Which responses do what is asked: (n,), 0 or 1."""
    return np.array([found.solved for found in _read(language, prompts, texts)], dtype=float)


def well_formed(language: str, prompts: list[list[dict]], texts: list[str]) -> float:
    """Share of responses in which the oracle finds no fault."""
    return float(np.mean([found.faults == 0 for found in _read(language, prompts, texts)]))


def _read(language: str, prompts: list[list[dict]], texts: list[str]) -> list:
    asked = _asked(language, prompts)
    return [worlds.ORACLES[language].read(prompt, text) for prompt, text in zip(asked, texts, strict=True)]


def _asked(language: str, prompts: list[list[dict]]) -> list:
    return [worlds.LANGUAGES[language].parse(prompt[-1]["content"]) for prompt in prompts]


def utilities(objective: worlds.Objective, prompts: list[list[dict]], texts: list[str]) -> np.ndarray:
    """The oracle's utility of each response: (n,)."""
    asked = _asked(objective.language, prompts)
    return np.array([objective.utility(prompt, text) for prompt, text in zip(asked, texts, strict=True)])


def model_reward(model: PreTrainedModel, pad_token_id: int) -> Reward:
    """The score of a reward model, read at a response's last token."""

    @torch.no_grad()
    def score(prompts: list[list[dict]], samples: list[Sample]) -> torch.Tensor:
        found = []
        for start in range(0, len(samples), SCORING_BATCH):
            batch = collate_responses(samples[start : start + SCORING_BATCH], pad_token_id, model.device)
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            found.append(logits.squeeze(-1).cpu().double())
        return torch.cat(found)

    return score


def implicit_reward(model: PreTrainedModel, reference: PreTrainedModel, pad_token_id: int, beta: float) -> Reward:
    """beta * sum_t log pi(y_t | x, y_<t) / pi_ref(y_t | x, y_<t): the reward that a DPO model stands for, up to a term
    of the prompt alone (Eq. 5 of arXiv:2305.18290)."""

    @torch.no_grad()
    def score(prompts: list[list[dict]], samples: list[Sample]) -> torch.Tensor:
        found = []
        for start in range(0, len(samples), SCORING_BATCH):
            batch = collate_responses(samples[start : start + SCORING_BATCH], pad_token_id, model.device)
            log_ratios = token_log_probs(model, batch) - token_log_probs(reference, batch)
            found.append(beta * log_ratios.sum(1).cpu().double())
        return torch.cat(found)

    return score


@dataclass(frozen=True)
class Scale:
    """Standardises a reward by the SFT model's own responses: mean 0 and deviation 1 there, so that the KL
    coefficient means the same for every reward."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, scores: torch.Tensor) -> "Scale":
        """Raises BadInput for scores without spread, from which nothing can be learnt."""
        deviation = float(scores.double().std())
        if not deviation > 1e-6:
            raise BadInput(f"reward: {len(scores)} responses of the base model all score {float(scores[0]):.3g}")
        return cls(float(scores.double().mean()), deviation)

    def apply(self, reward: Reward) -> Reward:
        return lambda prompts, samples: (reward(prompts, samples) - self.mean) / self.deviation


def load_reward_model(
    folder: str | Path, device: torch.device, dtype: torch.dtype, revision: str | None = None, initial: bool = False
) -> PreTrainedModel:
    """A one-label sequence classifier from safetensors; with `initial`, a causal LM's trunk under a new head.

    Raises BadInput where it is out of reach.
    """
    model = load_model(str(folder), device, dtype, revision, AutoModelForSequenceClassification, num_labels=1)
    if initial:
        torch.nn.init.zeros_(model.score.weight)  # else drawn from the global generator
    return model


def flip_labels(pairs: Dataset, rate: float, rng: np.random.Generator) -> Dataset:
    """Exchange chosen and rejected in a share `rate` of the pairs, drawn at random: a reward model of less quality."""
    flipped = set(rng.permutation(len(pairs))[: round(rate * len(pairs))].tolist())

    def exchange(pair: dict, i: int) -> dict:
        return {"chosen": pair["rejected"], "rejected": pair["chosen"]} if i in flipped else {}

    return pairs.map(exchange, with_indices=True) if flipped else pairs


# --- how good a reward model is -----------------------------------------------------------------


def label_probabilities(world: worlds.World, objective: str, pairs: Dataset) -> np.ndarray:
    """The probability with which the world labels the first of (chosen, rejected) as better: (n,)."""
    spec, temperature = world.objective(objective), world.temperature(objective)
    u, v = (utilities(spec, pairs["prompt"], [r[0]["content"] for r in pairs[side]]) for side in ("chosen", "rejected"))
    return expit((u - v) / temperature)


def quality(margins: np.ndarray, probabilities: np.ndarray | None = None) -> dict[str, float]:
    """Of a reward model on n held-out pairs, from its margins r(y+) - r(y-), (n,):

    accuracy            share of margins above 0
    best_accuracy       that of the true order of the utilities, on the same labels
    order_accuracy      share of pairs on which it agrees with that order
    calibration_error   mean |sigmoid(margin) - P(y+ labelled better)|, where P is known; else the gap
                        between mean confidence and accuracy
    """
    found = {"accuracy": float((margins > 0).mean())}
    if probabilities is None:
        confidence = expit(np.abs(margins)).mean()
        return found | {"calibration_error": float(abs(confidence - found["accuracy"]))}
    return found | {
        "best_accuracy": float((probabilities > 0.5).mean()),
        "order_accuracy": float(((margins > 0) == (probabilities > 0.5)).mean()),
        "calibration_error": float(np.abs(expit(margins) - probabilities).mean()),
    }


def calibration_curve(margins: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Mean predicted and mean true probability in `bins` bins of equal size by prediction: each (bins,).

    Both orders of every pair enter, so that the curve speaks of any pair and not of labelled ones.
    """
    predicted = expit(np.concatenate([margins, -margins]))
    true = np.concatenate([probabilities, 1 - probabilities])
    parts = np.array_split(predicted.argsort(kind="stable"), bins)
    return np.array([predicted[i].mean() for i in parts]), np.array([true[i].mean() for i in parts])
