"""Conversations in a language of the worlds: the base model learns to speak from them."""

import numpy as np
from datasets import Dataset

from preflab.data.worlds.languages import LANGUAGES


def sft_conversations(language: str, n: int, rng: np.random.Generator) -> Dataset:
    """n training prompts, each with a response of the grammar. A prompt can come more than once.

    Columns: `prompt` and `completion`, as messages.
    """
    speaks = LANGUAGES[language]
    pool = speaks.prompts("train")
    prompts = [pool[i] for i in rng.integers(len(pool), size=n)]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": str(p)}],
                "completion": [{"role": "assistant", "content": speaks.respond(p, rng, 0.0)}],
            }
            for p in prompts
        ]
    )
