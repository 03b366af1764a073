"""What SFT and reward modelling share: a run of a TRL trainer that leaves nothing behind."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from preflab.errors import BadInput
from preflab.progress import note


def run_trainer(
    trainer_class: type,
    config_class: type,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Dataset,
    *,
    what: str,
    steps: int,
    learning_rate: float,
    **options,
) -> list[float]:
    """Train in place; returns the some 30 logged losses. `options` are the config's own, `what` is for messages.

    Raises BadInput when the loss stops being a number.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            learning_rate=learning_rate,
            logging_steps=max(1, steps // 30),
            logging_nan_inf_filter=False,  # its default hides a NaN loss behind an average
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
            **options,
        )
        with _global_generators_kept():  # the Trainer seeds all of them
            trainer = trainer_class(model, config, train_dataset=data, processing_class=tokenizer)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_Noted(what))
            trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not torch.tensor(losses).isfinite().all():
        raise BadInput(f"{what}: the loss became {losses[-1]}: lower learning_rate={learning_rate}")
    model.eval()
    return losses


class _Noted(TrainerCallback):
    """A line of progress every tenth of the way."""

    def __init__(self, what: str):
        self.what = what

    def on_step_end(self, args, state, control, **_):
        if state.global_step % max(1, state.max_steps // 10) == 0:
            note(f"    {self.what}: step {state.global_step} of {state.max_steps}")


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
