"""Tiny models, one thread, quiet libraries. Everything is built anew for each test."""

import datasets
import numpy as np
import pytest
import torch
import transformers

from preflab.likelihood import encode_pairs
from preflab.models import Lora, TinyConfig, tiny_model, trainable, word_tokenizer
from preflab.worlds import get_world, preference_pairs, vocabulary


def pytest_configure(config):
    for category in ("FutureWarning", "UserWarning", "DeprecationWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{category}")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tokenizer():
    return word_tokenizer(vocabulary())


@pytest.fixture
def make_model(tokenizer):
    """make_model(architecture, rank=...): every trainable weight random, a LoRA's B included, so that
    no gradient is zero by construction. Evaluation mode, float64 unless told otherwise."""

    def make(architecture="gpt_neox", *, rank=0, dropout=0.0, dtype=torch.float64, seed=0):
        base = tiny_model(TinyConfig(architecture, 16, 2, 2, 64), tokenizer, seed).to(dtype)
        model = trainable(base, Lora(rank=rank, alpha=2 * rank, dropout=dropout), seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters() if rank else ():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data = 0.1 * noise.to(dtype)
        return model.eval()

    return make


@pytest.fixture
def make_pairs():
    """make_pairs(n, seed): conversational pairs of a world, responses of many lengths."""

    def make(n, seed=0, world="attributes", objective="verbosity", split="train"):
        return preference_pairs(get_world(world), objective, split, n, np.random.default_rng(seed))

    return make


@pytest.fixture
def make_rows(make_pairs, tokenizer):
    """make_rows(n, ...): the same, encoded."""

    def make(n, *args, **kwargs):
        return encode_pairs(make_pairs(n, *args, **kwargs), tokenizer, 64)[0]

    return make
