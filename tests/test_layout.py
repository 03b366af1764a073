"""Shared prompts: the same log-probs, gradients and G as plain rows, whatever the model and the method."""

import numpy as np
import pytest
import torch
from test_methods import PRINTED
from transformers import LlamaConfig, LlamaForCausalLM

from preflab import layout as layouts
from preflab.alignment import nll_gradient, parameters_of, token_alignment
from preflab.layout import layout
from preflab.likelihood import (
    collate,
    collate_responses,
    on_responses,
    response_states,
    states_log_probs,
    token_log_probs,
    trunk_of,
)
from preflab.models import Lora, load_model, trainable
from preflab.paths import project_root
from preflab.weightings import surrogate

CPU = torch.device("cpu")
SMOLLM2 = project_root() / "models" / "smollm2"
MODELS = [("gpt_neox", 0), ("gpt_neox", 4), ("llama", 0), ("llama", 4)]


@pytest.fixture(autouse=True)
def _exact(exact_norm):
    """Llama in float64 all the way."""


def plain(model, batch):
    """`token_log_probs` from one plain row a response and from all logits, written again."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1]
    log_probs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    chosen = log_probs.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return chosen * batch["completion_mask"][:, 1:]


def gradient(model, c, log_probs):
    weights = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(surrogate(c, log_probs), weights)])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("method", [value for value, *_ in PRINTED.values()])
@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_shared_prompts_are_plain_rows(architecture, rank, method, dtype, tolerance, make_model, make_rows, tokenizer):
    model, rows = make_model(architecture, rank=rank, dtype=dtype), make_rows(6)
    batch = collate(rows, tokenizer.pad_token_id, CPU)
    assert layout(batch, model).inputs["input_ids"].shape[0] == 6  # one row a pair
    ours, theirs = token_log_probs(model, batch), plain(model, batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    mask = batch["completion_mask"][:, 1:]
    ratios = theirs.sum(1) + torch.linspace(-2, 2, 12, dtype=dtype)
    c, *_ = method.weigh(ratios if method.reference else theirs.sum(1), mask)
    one, other = gradient(model, c, ours), gradient(model, c, theirs)
    torch.testing.assert_close(one, other, rtol=0, atol=10 * tolerance * float(other.abs().max()))


@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_g_is_the_same_in_both_layouts(architecture, rank, make_model, make_rows, tokenizer, monkeypatch):
    model, rows, pad = make_model(architecture, rank=rank), make_rows(6), tokenizer.pad_token_id
    batch = collate(rows[:4], pad, CPU)
    final = collate_responses([(r["prompt_ids"], r["chosen_ids"]) for r in rows[4:]], pad, CPU)
    v = nll_gradient(model, [final], parameters_of(model))
    shared = token_alignment(model, batch, v)
    monkeypatch.setattr(layouts, "_operations", lambda rows, length, width: -rows)  # never share
    assert "position_ids" not in layout(batch, model).inputs
    torch.testing.assert_close(token_alignment(model, batch, v), shared, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_groups_of_any_size_in_any_order_share_and_may_be_empty(architecture, make_model, make_rows, tokenizer):
    model, rows = make_model(architecture), make_rows(3)
    replies = [(r["prompt_ids"], ids) for r in rows for ids in (r["chosen_ids"], r["rejected_ids"], r["chosen_ids"])]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).tolist()
    samples = [*(replies[i] for i in order), (rows[1]["prompt_ids"], [])]
    batch = collate_responses(samples, tokenizer.pad_token_id, CPU)
    assert layout(batch, model).inputs["input_ids"].shape[0] == 3
    torch.testing.assert_close(token_log_probs(model, batch), plain(model, batch), rtol=0, atol=1e-9)


def test_different_prompts_stay_in_plain_rows(make_model, make_rows, tokenizer):
    samples = [(r["prompt_ids"], r["chosen_ids"]) for r in make_rows(4)]
    batch = collate_responses(samples, tokenizer.pad_token_id, CPU)
    inputs = layout(batch, make_model()).inputs
    assert inputs["input_ids"] is batch["input_ids"] and "position_ids" not in inputs


def test_what_costs_less_is_taken(make_model):
    """A long prompt pays for the attention of the replies that meet in its row; a short one with long replies does
    not."""
    assert layouts._operations(2, 10, 16) == 2 * 10 * (6 * 16 + 10)
    model = make_model()  # width 16: a token's matrices cost as much as 96 keys
    assert len(inputs_of(model, prompt=40, reply=5)["input_ids"]) == 1
    assert len(inputs_of(model, prompt=2, reply=40)["input_ids"]) == 8


def inputs_of(model, prompt, reply):
    samples = [(list(range(5, 5 + prompt)), list(range(6, 6 + reply)))] * 8
    return layout(collate_responses(samples, 0, CPU), model).inputs


def test_a_reply_sees_the_prompt_and_itself_and_nothing_else(make_model, make_rows, tokenizer):
    model, rows = make_model(), make_rows(1)
    row, other = rows[0], dict(rows[0], rejected_ids=rows[0]["rejected_ids"][::-1])
    one, two = (token_log_probs(model, collate([r], tokenizer.pad_token_id, CPU))[0] for r in (row, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_head_in_chunks_is_the_head(rank, make_model, make_rows, tokenizer, monkeypatch):
    model, batch = make_model("llama", rank=rank), collate(make_rows(4), tokenizer.pad_token_id, CPU)
    c = torch.linspace(-1, 1, batch["input_ids"][:, 1:].numel()).view(8, -1) * batch["completion_mask"][:, 1:]
    whole = gradient(model, c, token_log_probs(model, batch))
    v = nll_gradient(model, [batch], parameters_of(model))
    s = token_alignment(model, batch, v)
    seen, head = [], model.get_output_embeddings()
    monkeypatch.setattr("preflab.likelihood.LOGITS_AT_ONCE", 5 * head.weight.shape[0])
    head.register_forward_hook(lambda _, __, logits: seen.append(len(logits)))
    parts = gradient(model, c, token_log_probs(model, batch))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    tokens = int(batch["completion_mask"].sum())
    assert max(seen) == 5 and sum(seen) == 2 * tokens  # once forward, once again for the backward pass
    torch.testing.assert_close(token_alignment(model, batch, v), s, rtol=1e-9, atol=1e-9)


def test_logits_are_made_for_response_tokens_alone(make_model, make_rows, tokenizer):
    model, batch = make_model(), collate(make_rows(4), tokenizer.pad_token_id, CPU)
    states = response_states(trunk_of(model), batch)
    assert states.shape == (int(batch["completion_mask"].sum()), 16)
    log_probs = on_responses(states_log_probs(model, states, batch), batch)
    assert torch.equal(log_probs, token_log_probs(model, batch))


# --- real shapes ----------------------------------------------------------------------------------


def long_pairs(vocabulary, n=3):
    """Encoded pairs with prompts of 40 to 80 tokens and replies of 10 to 60, at random."""
    rng = np.random.default_rng(0)

    def some(low, high):
        return rng.integers(5, vocabulary, rng.integers(low, high)).tolist()

    return [{"prompt_ids": some(40, 80), "chosen_ids": some(10, 60), "rejected_ids": some(10, 60)} for _ in range(n)]


def assert_layouts_agree(model, tolerance):
    batch = collate(long_pairs(model.config.vocab_size), 0, model.device)
    assert "position_ids" in layout(batch, model).inputs
    ours, theirs = token_log_probs(model, batch), plain(model, batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    c = torch.linspace(-1, 1, ours.numel()).view_as(ours) * batch["completion_mask"][:, 1:]
    one, other = gradient(model, c, ours), gradient(model, c, theirs)
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_model_with_smollm2s_vocabulary_shared_heads_and_tied_embeddings(rank, dtype, tolerance):
    config = LlamaConfig(
        vocab_size=49152, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=256,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(dtype)
    model = trainable(model, Lora(rank=rank, alpha=8), 0).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # a fresh adapter has zeros there
            parameter.data.fill_(0.01)
    assert_layouts_agree(model, tolerance)


@pytest.mark.skipif(not SMOLLM2.exists(), reason="no models/smollm2: run make model")
def test_smollm2_itself():
    model = trainable(load_model(str(SMOLLM2), CPU, torch.float32), Lora(rank=4, alpha=8), 0).eval()
    assert_layouts_agree(model, 1e-3)  # float32 over 30 layers
