"""Tiny models, one thread, quiet libraries. Everything is built anew for each test."""

import json

import datasets
import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from preflab import hub
from preflab.data.worlds import get_world, preference_pairs, vocabulary
from preflab.likelihood import encode_pairs
from preflab.models import Lora, Shape, tiny_model, trainable
from preflab.running.cache import Cache
from preflab.stages.stage import keep_in
from preflab.tokenizers import PLAIN_TEMPLATE, bpe_tokenizer, word_tokenizer


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
def exact_norm(monkeypatch):
    """LlamaRMSNorm without its detour through float32, which costs float64 half its digits."""

    def forward(norm, hidden):
        return norm.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.fixture
def make_gguf(tmp_path):
    """make_gguf(...): a tiny random Llama, and the same model written as a GGUF file, which the path is of."""

    def make(name="tiny.gguf", architecture="llama", quantised=None, without=(), seed=0):
        texts = ["how do i fix the old lamp at home ?", "use the wire . then test it ."]
        tokenizer = bpe_tokenizer(texts, 300)
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        shape |= {"intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": len(tokenizer)}
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = transformers.LlamaConfig(**shape, **ends, tie_word_embeddings=True)
        model = transformers.LlamaForCausalLM(config).eval()
        write_gguf(tmp_path / name, model, tokenizer, architecture, quantised, without)
        return tmp_path / name, model, tokenizer

    return make


def write_gguf(path, model, tokenizer, architecture, quantised, without):
    """As llama.cpp's converter does it (convert_hf_to_gguf.py): its names of tensors, its order of rows of q and k."""
    config, vocabulary = model.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].get))
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(merge) for merge in vocabulary["merges"]])
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(PLAIN_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        short = names.get_name(name.removesuffix(".weight"))
        if name == "lm_head.weight" or short in without:
            continue
        values = tensor.numpy()
        for projection, n in heads.items():
            if projection in name:
                values = values.reshape(n, 2, len(values) // n // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if quantised and values.ndim == 2:
            writer.add_tensor(f"{short}.weight", gguf.quants.quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(f"{short}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
