"""Supervised fine-tuning through TRL: the base model everything else starts from."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from preflab.errors import BadInput


@dataclass(frozen=True)
class SFTSettings:
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 3e-3
    max_length: int = 64


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Dataset,
    settings: SFTSettings,
    seed: int,
) -> list[float]:
    """Train in place: on (prompt, completion) rows with the loss on completions alone, or on rows of whole
    `messages` with the loss on every token. Returns the logged losses.

    Raises BadInput when the loss stops being a number.
    """
    from trl import SFTConfig, SFTTrainer  # slow to import, and a warm run needs none of it

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=settings.steps // 20,
            max_length=settings.max_length,
            logging_steps=max(1, settings.steps // 30),
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
            trainer = SFTTrainer(model, config, train_dataset=conversations, processing_class=tokenizer)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not torch.tensor(losses).isfinite().all():
        raise BadInput(f"SFT loss became {losses[-1]}: lower learning_rate={settings.learning_rate}")
    model.eval()
    return losses


@contextmanager
def global_generators_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
