"""Tiny models, one thread, quiet libraries. Everything is built anew for each test."""

import datasets
import numpy as np
import pytest
import torch
import transformers

from preflab import hub
from preflab.data.worlds import get_world, preference_pairs, vocabulary
from preflab.likelihood import encode_pairs
from preflab.models import Lora, Shape, tiny_model, trainable
from preflab.running.cache import Cache
from preflab.stages.stage import keep_in
from preflab.tokenizers import word_tokenizer


def pytest_configure(config):
    for category in ("FutureWarning", "UserWarning", "DeprecationWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{category}")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test asks the hub, and every test finds it out of reach."""
    monkeypatch.setattr(hub, "_answers", lambda: False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory):
    """One cache for the tests of a module: what one test trained, the next may load."""
    cache = Cache(tmp_path_factory.mktemp("module") / "cache")
    keep_in(cache)
    return cache


@pytest.fixture
def cache(tmp_path):
    """An empty cache for what stages make in this test."""
    cache = Cache(tmp_path / "cache")
    keep_in(cache)
    return cache


@pytest.fixture
def tokenizer():
    return word_tokenizer(vocabulary())


@pytest.fixture
def make_model(tokenizer):
    """make_model(architecture, rank=...): every trainable weight random, a LoRA's B included, so that
    no gradient is zero by construction. Evaluation mode, float64 unless told otherwise."""

    def make(architecture="gpt_neox", *, rank=0, dropout=0.0, dtype=torch.float64, seed=0):
        base = tiny_model(Shape(architecture, 16, 2, 2, 64), tokenizer, seed).to(dtype)
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
