"""Conversations in the language of the worlds: the base model learns to speak from them."""

import numpy as np
from datasets import Dataset

from preflab.data.worlds.language import all_prompts, sample_response


def sft_conversations(n: int, rng: np.random.Generator) -> Dataset:
    """n training prompts, each with a response of the grammar. A prompt can come more than once.

    Columns: `prompt` and `completion`, as messages.
    """
    pool = all_prompts("train")
    prompts = [pool[i] for i in rng.integers(len(pool), size=n)]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": str(p)}],
                "completion": [{"role": "assistant", "content": sample_response(p, rng)}],
            }
            for p in prompts
        ]
    )
