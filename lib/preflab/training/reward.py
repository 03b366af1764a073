"""Reward models through TRL: a scalar head on the base model, trained on preference pairs."""

import tempfile
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from preflab.errors import BadInput
from preflab.training.sft import global_generators_kept


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
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=steps // 10,
            max_length=settings.max_length,
            logging_steps=max(1, steps // 30),
            logging_nan_inf_filter=False,  # its default hides a NaN loss behind an average
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
            seed=seed,
        )
        with global_generators_kept():  # the Trainer seeds all of them
            trainer = RewardTrainer(model, config, train_dataset=pairs, processing_class=tokenizer)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not torch.tensor(losses).isfinite().all():
        raise BadInput(f"reward model's loss became {losses[-1]}: lower learning_rate={settings.learning_rate}")
    model.eval()
    return losses
