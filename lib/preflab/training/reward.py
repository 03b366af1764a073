"""Reward models through TRL: a scalar head on the base model, trained on preference pairs."""

from typing import Annotated

from datasets import Dataset
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.settings import Count, Positive, settings
from preflab.training.trl import run_trainer


@settings
class RewardSettings:
    """Training of a reward model."""

    epochs: Count = 2
    batch_size: Count = 16  # pairs an update
    learning_rate: Positive = 2e-3
    label_flips: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of training labels that are turned round


def train_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    settings: RewardSettings,
    *,
    max_length: int,
    seed: int,
) -> list[float]:
    """Train a one-label sequence classifier in place on -log sigmoid(r(y+) - r(y-)) (Eq. 2 of arXiv:2305.18290).

    Returns the logged losses. Raises BadInput when the loss stops being a number.
    """
    from trl import RewardConfig, RewardTrainer  # slow to import, and a warm run needs none of it

    steps = max(1, len(pairs) // settings.batch_size * settings.epochs)
    return run_trainer(
        RewardTrainer,
        RewardConfig,
        model,
        tokenizer,
        pairs,
        what="reward model",
        steps=steps,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        lr_scheduler_type="linear",
        warmup_steps=steps // 10,
        max_length=max_length,
        seed=seed,
    )
