"""Reward models through TRL: a scalar head on the base model, trained on preference pairs."""

from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.training.trl import run_trainer


@dataclass(frozen=True)
class RewardSettings:
    epochs: int = 1
    batch_size: int = 16  # pairs an update
    learning_rate: float = 1e-3
    max_length: int = 64


def train_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    settings: RewardSettings,
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
        what="reward model's",
        steps=steps,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        lr_scheduler_type="linear",
        warmup_steps=steps // 10,
        max_length=settings.max_length,
        seed=seed,
    )
