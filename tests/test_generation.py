"""Generation: padding must not change what a model says, sampling must be seeded."""

import pytest

from preflab import worlds
from preflab.errors import BadInput
from preflab.generation import generate
from preflab.models import TinyConfig, tiny_model, word_tokenizer

PROMPTS = ["how do i fix the old lamp at home ?", "how do i fix", "lamp"]


@pytest.fixture(scope="module")
def speaker():
    tokenizer = word_tokenizer(worlds.vocabulary())
    return tiny_model(TinyConfig(hidden_size=16, layers=2, heads=2), tokenizer, 0).double(), tokenizer


def ask(speaker, prompts, **options):
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return generate(*speaker, messages, max_new_tokens=12, **options)


def test_a_batch_answers_as_each_alone(speaker):
    assert ask(speaker, PROMPTS) == [ask(speaker, [prompt])[0] for prompt in PROMPTS]
    assert ask(speaker, PROMPTS) == ask(speaker, PROMPTS, batch_size=2)


def test_sampling_is_seeded_and_differs_from_greedy(speaker):
    first, again, other = (ask(speaker, PROMPTS, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first != ask(speaker, PROMPTS)


def test_a_prompt_without_room_is_refused(speaker):
    with pytest.raises(BadInput, match=r"prompt of \d+ tokens: expected fewer than .* 64"):
        ask(speaker, [" ".join(["lamp"] * 70)])
