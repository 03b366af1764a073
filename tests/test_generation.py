"""Generation: padding must not change what a model says, sampling must be seeded."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from preflab.attention import WRITTEN_OUT
from preflab.data import worlds
from preflab.errors import BadInput
from preflab.generation import generate, respond, sample
from preflab.models import Shape, tiny_model
from preflab.tokenizers import word_tokenizer

PROMPTS = ["how do i fix the old lamp at home ?", "how do i fix", "lamp"]


@pytest.fixture(scope="module")
def speaker():
    tokenizer = word_tokenizer(worlds.vocabulary())
    return tiny_model(Shape(hidden_size=16, layers=2, heads=2), tokenizer, 0).double(), tokenizer


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


def test_without_a_temperature_a_response_is_greedy(speaker):
    model, tokenizer = speaker
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)["input_ids"]
    greedy = respond(model, tokenizer, ids, 12, 0.0)
    assert respond(model, tokenizer, ids, 12) == greedy == sample(model, tokenizer, prompts, max_new_tokens=12)


def test_a_prompt_without_room_is_refused(speaker):
    with pytest.raises(BadInput, match=r"prompt of \d+ tokens: expected fewer than .* 64"):
        ask(speaker, [" ".join(["lamp"] * 70)])


@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
def test_written_out_attention_is_the_fused_one(key_value_heads):
    """Also where heads share keys, under left padding, and in bfloat16, whose softmax is float32."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=key_value_heads,
    )  # fmt: skip
    ids = torch.arange(20).reshape(2, 10)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 0.05)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=WRITTEN_OUT, dtype=dtype).eval()
        ours = model(ids, attention_mask=mask).logits[mask.bool()]
        model.set_attn_implementation("sdpa")
        theirs = model(ids, attention_mask=mask).logits[mask.bool()]
        assert ours.isfinite().all()
        assert torch.allclose(ours, theirs, atol=tolerance)
