"""Tokens to log-probabilities: against a loop, against TRL, and what is saved loads again."""

import copy
import math

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteConfig
from trl import DPOConfig, DPOTrainer

from preflab.errors import BadInput
from preflab.hardware import resolve_device, resolve_dtype
from preflab.likelihood import (
    collate,
    encode_pairs,
    on_responses,
    pair_log_probs,
    response_states,
    states_log_probs_and_entropy,
    token_log_probs,
    trunk_of,
)
from preflab.models import Lora, Shape, load_model, load_trained, save_model, tiny_model, trainable, unwrap
from preflab.tokenizers import bpe_tokenizer, load_tokenizer

CPU = torch.device("cpu")
ARCHITECTURES = ["gpt_neox", "llama"]


@torch.no_grad()
def by_hand(model, prompt, response):
    """log pi of each response token: one softmax at a time, no padding, no shifting of masks."""
    log_probs = []
    for t, token in enumerate(response):
        logits = model(torch.tensor([prompt + response[:t]])).logits[0, -1]
        log_probs.append(float((logits.exp() / logits.exp().sum())[token].log()))
    return log_probs


# --- log-probs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_token_log_probs_are_the_loop_over_softmax(architecture, make_model, make_rows, tokenizer):
    model, rows = make_model(architecture), make_rows(4)
    assert len({len(r["chosen_ids"]) for r in rows} | {len(r["rejected_ids"]) for r in rows}) > 2  # padding
    batch = collate(rows, tokenizer.pad_token_id, CPU)
    got = token_log_probs(model, batch)
    assert got.dtype == torch.float64 and got.shape == (8, batch["input_ids"].shape[1] - 1)
    sides = [(r["prompt_ids"], r[side]) for side in ("chosen_ids", "rejected_ids") for r in rows]
    for row, (prompt, response) in zip(got, sides, strict=True):
        expected, first = by_hand(model, prompt, response), len(prompt) - 1  # entry t speaks of token t + 1
        assert row[first : first + len(response)].tolist() == pytest.approx(
            expected, rel=1e-6
        )  # Llama's norm is float32
        assert row[:first].eq(0).all() and row[first + len(response) :].eq(0).all()


def test_responses_end_in_eos_and_prompts_in_the_assistant_marker(make_rows, tokenizer):
    for row in make_rows(5):
        assert tokenizer.decode(row["prompt_ids"]).startswith("<user> how do i")
        assert row["prompt_ids"][-1] == tokenizer.convert_tokens_to_ids("<assistant>")
        for side in ("chosen_ids", "rejected_ids"):
            assert row[side].count(tokenizer.eos_token_id) == 1 and row[side][-1] == tokenizer.eos_token_id
            assert tokenizer.unk_token_id not in row[side]


def test_a_pair_does_not_depend_on_its_batch(make_model, make_rows, tokenizer):
    model, rows = make_model().train(), make_rows(6)
    together = pair_log_probs(model, rows, tokenizer.pad_token_id, batch_size=6)
    assert model.training  # as it was
    for size in (1, 4):
        some = pair_log_probs(model, rows, tokenizer.pad_token_id, batch_size=size)
        for name in ("chosen", "rejected", "chosen_tokens", "rejected_tokens"):
            torch.testing.assert_close(getattr(some, name), getattr(together, name), rtol=0, atol=1e-12)


def test_pair_log_probs_are_sums_and_counts_without_dropout(make_model, make_rows, tokenizer):
    model, rows = make_model(rank=2, dropout=0.5).train(), make_rows(3)
    got = pair_log_probs(model, rows, tokenizer.pad_token_id, batch_size=2)
    for side in ("chosen", "rejected"):
        expected = [sum(by_hand(model.eval(), r["prompt_ids"], r[f"{side}_ids"])) for r in rows]
        assert getattr(got, side).tolist() == pytest.approx(expected, rel=1e-6)
        assert getattr(got, f"{side}_tokens").tolist() == [len(r[f"{side}_ids"]) for r in rows]


def test_bfloat16_logits_are_normalised_in_float32(make_model, make_rows, tokenizer):
    model, batch = make_model(dtype=torch.bfloat16), collate(make_rows(2), tokenizer.pad_token_id, CPU)
    got = token_log_probs(model, batch)
    assert got.dtype == torch.float32
    exact = token_log_probs(model.double(), batch)
    torch.testing.assert_close(got.double(), exact, rtol=0.1, atol=0.1)


# --- encoding -------------------------------------------------------------------------------------


def two_turns(pair):
    earlier = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi there"}]
    return {"prompt": earlier + pair["prompt"]}


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_encoding_is_trls(kind, make_model, make_pairs, tokenizer, tmp_path):
    pairs = make_pairs(12)
    if kind == "bpe":
        texts = [row["chosen"][0]["content"] for row in pairs]
        pairs, tokenizer = pairs.map(two_turns), bpe_tokenizer(texts, 300)
    model = tiny_model(Shape("llama", 16, 1, 2, 512), tokenizer, 0)
    rows, left_out = encode_pairs(pairs, tokenizer, 512)
    config = DPOConfig(str(tmp_path), max_length=None, report_to="none", use_cpu=True, bf16=False)
    reference = copy.deepcopy(model)
    trainer = DPOTrainer(model, reference, config, train_dataset=pairs, processing_class=tokenizer)
    theirs = trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    assert rows == theirs.to_list() and left_out == 0


def test_a_prompt_that_merges_with_the_response_is_cut_where_they_diverge(make_pairs, tokenizer):
    class Merging:
        def apply_chat_template(self, messages, add_generation_prompt=False, **_):
            text = messages[-1]["content"]
            return {"input_ids": [1, 2, 3] if add_generation_prompt else [1, 2, 9, len(text), len(text)]}

    pairs = make_pairs(1)
    (row,), _ = encode_pairs(pairs, Merging(), 64)
    n, m = (len(pairs[0][side][0]["content"]) for side in ("chosen", "rejected"))
    assert row == {"prompt_ids": [1, 2], "chosen_ids": [9, n, n], "rejected_ids": [9, m, m]}


def test_pairs_over_the_limit_are_left_out_never_cut(make_pairs, tokenizer):
    pairs = make_pairs(40)
    everything, _ = encode_pairs(pairs, tokenizer, 64)

    def length(row):
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    limit = sorted(map(length, everything))[20]
    rows, left_out = encode_pairs(pairs, tokenizer, limit)
    assert rows == [row for row in everything if length(row) <= limit]
    assert left_out == 40 - len(rows) > 0
    with pytest.raises(BadInput, match=r"^no pairs left: each of 40 is longer than max_length=10 tokens$"):
        encode_pairs(pairs, tokenizer, 10)


# --- models on disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_are_saved_in_the_common_formats(architecture, make_model, make_rows, tokenizer, tmp_path):
    model, rows = make_model(architecture), make_rows(2)
    save_model(model, tokenizer, tmp_path)
    assert {f.suffix for f in tmp_path.iterdir()} <= {".safetensors", ".json", ".jinja"}
    batch = collate(rows, tokenizer.pad_token_id, CPU)
    expected = token_log_probs(model, batch)
    for loaded in (
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="exact"),
        load_model(str(tmp_path), CPU, torch.float64),
        load_trained(tmp_path, None, CPU, torch.float64),
    ):
        torch.testing.assert_close(token_log_probs(loaded, batch), expected, rtol=0, atol=1e-12)
    text = "<user>how do i fix the old lamp at home ?<assistant>"
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.chat_template == tokenizer.chat_template and loaded.pad_token == "<pad>"


def test_adapters_are_pefts(make_model, make_rows, tokenizer, tmp_path):
    model, batch = make_model(rank=4), collate(make_rows(2), tokenizer.pad_token_id, CPU)
    expected = token_log_probs(model, batch)
    save_model(model, tokenizer, tmp_path)
    names = {f.name for f in tmp_path.iterdir() if f.suffix != ".md"}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    base = make_model()
    assert not torch.allclose(token_log_probs(base, batch), expected)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    torch.testing.assert_close(token_log_probs(loaded, batch), expected, rtol=0, atol=1e-12)
    ours = load_trained(tmp_path, make_model(), CPU, torch.float64)
    torch.testing.assert_close(token_log_probs(ours, batch), expected, rtol=0, atol=1e-12)
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    torch.testing.assert_close(token_log_probs(unwrap(ours), batch), token_log_probs(base, batch))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_adapter_changes_nothing_and_covers_every_block_projection(architecture, tokenizer):
    def model():
        return tiny_model(Shape(architecture, 16, 2, 2, 64), tokenizer, 0)

    ids = torch.arange(5, 25)[None]
    wrapped, base = trainable(model(), Lora(rank=2), seed=1).eval(), model()
    torch.testing.assert_close(wrapped(ids).logits, base(ids).logits)
    linear = [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and "layers." in n]
    adapted = {n for n, p in wrapped.named_parameters() if p.requires_grad and "lora_A" in n}
    assert len(adapted) == len(linear) == {"gpt_neox": 8, "llama": 14}[architecture]
    assert all("lora" in n for n, p in wrapped.named_parameters() if p.requires_grad)


def test_seeds_decide_models_and_adapters_and_leave_the_global_generator_alone(make_model, tokenizer):
    def first(model):
        return next(p for p in model.parameters() if p.requires_grad).detach().clone()

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    models = [tiny_model(Shape(hidden_size=16, layers=1), tokenizer, s) for s in (0, 0, 1)]
    a, b, c = map(first, models)
    assert torch.equal(a, b) and not torch.equal(a, c)
    a, b, c = (first(trainable(m, Lora(2), s)) for m, s in zip(models, (0, 0, 1), strict=True))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.rand(3), expected)


def test_entropy_is_that_of_the_distribution_before_each_response_token(make_model, make_rows, tokenizer):
    model, batch = make_model(), collate(make_rows(2), tokenizer.pad_token_id, CPU)
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        states = response_states(trunk_of(model), batch)
        log_probs, entropy = states_log_probs_and_entropy(model, states, batch)
        model.get_output_embeddings().weight.zero_()
        _, even = states_log_probs_and_entropy(model, states, batch)
    found = on_responses(entropy, batch)
    torch.testing.assert_close(on_responses(log_probs, batch), token_log_probs(make_model(), batch).detach())
    assert found.shape == batch["input_ids"][:, 1:].shape
    for row, t in ((row, t) for row in range(4) for t in range(found.shape[1])):
        p = logits[row, t].softmax(-1)
        expected = float(-(p * p.log()).sum()) if batch["completion_mask"][row, t + 1] else 0
        assert float(found[row, t]) == pytest.approx(expected, rel=1e-10)
    assert even.tolist() == pytest.approx([math.log(logits.shape[-1])] * len(even))


def test_a_model_that_scales_its_logits_is_refused(tmp_path):
    for scale in (1.0, 4.0):
        config = GraniteConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, logits_scaling=scale,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / str(scale))
    load_model(str(tmp_path / "1.0"), CPU, torch.float32)
    with pytest.raises(BadInput, match="caps or scales its logits"):
        load_model(str(tmp_path / "4.0"), CPU, torch.float32)


def test_a_shape_of_no_architecture_is_refused():
    with pytest.raises(ValidationError, match=r"architecture\n.*Input should be 'gpt_neox' or 'llama'"):
        Shape(architecture="rnn")


@pytest.mark.parametrize("what", ["absent", "no template", "device", "dtype", "cut"])
def test_what_cannot_be_had_is_named_in_one_line(what, make_model, tokenizer, tmp_path):
    place = str(tmp_path / "place")
    if what == "cut":
        save_model(make_model(), tokenizer, tmp_path / "place")
        weights = tmp_path / "place" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    if what == "no template":
        tokenizer.chat_template = None
        tokenizer.save_pretrained(place)
    call, message = {
        "absent": (lambda: load_model(place, CPU, torch.float32), r"^model '.*place': not loadable"),
        "cut": (lambda: load_model(place, CPU, torch.float32), r"^model '.*place': not loadable"),
        "no template": (lambda: load_tokenizer(place), r"^tokenizer '.*place': has no chat template"),
        "device": (
            lambda: resolve_device("mps" if torch.cuda.is_available() else "cuda"),
            r"^device='(cuda|mps)': not on this machine, expected .* auto, .*cpu$",
        ),
        "dtype": (lambda: resolve_dtype("int8"), r"^dtype='int8': expected float32, float64 or bfloat16$"),
    }[what]
    with pytest.raises(BadInput, match=message) as error:
        call()
    assert "\n" not in str(error.value)
