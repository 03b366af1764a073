"""Supervised fine-tuning through TRL: the base model everything else starts from."""

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.settings import Count, Positive, settings
from preflab.training.trl import run_trainer


@settings
class SFTSettings:
    """Section `base.sft`."""

    steps: Count = 300
    batch_size: Count = 64  # dialogues a step
    learning_rate: Positive = 4e-3


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Dataset,
    settings: SFTSettings,
    *,
    max_length: int,
    seed: int,
) -> list[float]:
    """Train in place: on (prompt, completion) rows with the loss on completions alone, or on rows of whole
    `messages` with the loss on every token. Returns the logged losses.

    Raises BadInput when the loss stops being a number.
    """
    from trl import SFTConfig, SFTTrainer  # slow to import, and a warm run needs none of it

    return run_trainer(
        SFTTrainer,
        SFTConfig,
        model,
        tokenizer,
        conversations,
        what="SFT",
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=settings.steps // 20,
        max_length=max_length,
        seed=seed,
    )
