"""Models and tokenizers: tiny ones built from a config, hub ones by name, one code path for both.

Device and dtype are decided here and nowhere else. Everything is saved in Hugging Face's and PEFT's
own formats (safetensors) and loads through AutoModelForCausalLM, AutoTokenizer and PeftModel.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from preflab.errors import BadInput

SPECIAL_TOKENS = ["<pad>", "<unk>", "<eos>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<assistant>{% generation %}{{ message['content'] }}<eos>{% endgeneration %}"
    "{% else %}<user>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLAIN_TEMPLATE = (  # of text alone, for tokenizers without markers of their own
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n') + '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"
)
LORA_TARGETS = {  # every linear projection of a block, as in paper S
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


# --- device and dtype ---------------------------------------------------------------------------


def resolve_device(device: str) -> torch.device:
    """The device to run on: "auto" takes CUDA, then MPS, then the CPU. Raises BadInput for one that is not there."""
    present = [
        name
        for name, there in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
            ("cpu", True),
        )
        if there
    ]
    if device == "auto":
        return torch.device(present[0])
    if device not in present:
        raise BadInput(f"device={device!r}: not on this machine, expected one of: auto, {', '.join(present)}")
    return torch.device(device)


def resolve_dtype(dtype: str) -> torch.dtype:
    """A floating dtype by its torch name. Raises BadInput for any other word."""
    if dtype not in ("float32", "float64", "bfloat16"):
        raise BadInput(f"dtype={dtype!r}: expected float32, float64 or bfloat16")
    return getattr(torch, dtype)


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, on the CPU where the tensor's device (MPS) has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


# --- attention ----------------------------------------------------------------------------------

ATTENTION = "exact"  # the name under which transformers knows the function below


def exact_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T * scaling, masked) v, written out: forward-mode AD needs that.

    transformers' "eager" takes the softmax in float32 whatever the model's dtype, which costs float64 half
    its digits and makes NaN of left padding there; this takes it in the model's dtype, or float32 if that
    is less. query is (batch, heads, seq, head size); key and value may have fewer heads. Returns
    (batch, seq, heads, head size) and the attention weights.
    """
    if (groups := query.shape[1] // key.shape[1]) > 1:  # grouped-query attention
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    # `*` would make a tensor of the number, and send forward-mode AD through torch's slow path.
    scores = torch.ops.aten.mul.Scalar(query @ key.transpose(2, 3), scaling)
    if attention_mask is not None:  # 0 where attention is allowed
        scores = scores.masked_fill(attention_mask != 0, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, exact_attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)


# --- tokenizers ---------------------------------------------------------------------------------


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, for the worlds' language."""
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _chat_tokenizer(tokenizer)


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the reader's own texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _chat_tokenizer(tokenizer)


def _chat_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


# --- models -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TinyConfig:
    """Shape of a model built from scratch."""

    architecture: str = "gpt_neox"  # or "llama"
    hidden_size: int = 64
    layers: int = 4
    heads: int = 4
    context: int = 64  # tokens


def tiny_model(config: TinyConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A randomly initialised causal LM in float32."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": 4 * config.hidden_size,
        "max_position_embeddings": config.context,
        "initializer_range": config.hidden_size**-0.5,  # HF's 0.02 learns slowly at this width
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config.architecture == "gpt_neox":
        hf_config = GPTNeoXConfig(**shape)
    elif config.architecture == "llama":
        hf_config = LlamaConfig(**shape)
    else:
        raise BadInput(f"architecture={config.architecture!r}: expected gpt_neox or llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers initialises from the global generator
        model = AutoModelForCausalLM.from_config(hf_config, attn_implementation=ATTENTION, dtype=torch.float32)
    return model.eval()


def load_model(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    kind: type = AutoModelForCausalLM,
    **config,
) -> PreTrainedModel:
    """A saved or hub model, safetensors only, no remote code. Raises BadInput where it is out of reach."""
    try:
        model = kind.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            trust_remote_code=False,
            **config,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInput(f"model {name!r}: not loadable: {first_line(error)}") from error
    return model.to(device).eval()


def load_tokenizer(name: str, revision: str | None = None, plain: bool = False) -> PreTrainedTokenizerBase:
    """A saved or hub tokenizer with a chat template and a pad token.

    With `plain`, one without a template gets PLAIN_TEMPLATE: for a model that SFT is about to teach it.
    Raises BadInput where it cannot be loaded or lacks a template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"tokenizer {name!r}: not loadable: {first_line(error)}") from error
    if tokenizer.chat_template is None and plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.chat_template is None:
        raise BadInput(f"tokenizer {name!r}: has no chat template, expected a chat or instruct model, or sft_source")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights (safetensors), config and tokenizer; for a PeftModel the adapter alone, in PEFT's format."""
    model.save_pretrained(folder)
    if not isinstance(model, PeftModel):
        tokenizer.save_pretrained(folder)


# --- LoRA ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lora:
    """rank 0 means full fine-tuning."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0


def trainable(model: PreTrainedModel, lora: Lora, seed: int) -> PreTrainedModel | PeftModel:
    """The model with a fresh adapter on every projection of its blocks, or itself for full fine-tuning."""
    if lora.rank == 0:
        return model.requires_grad_(True)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=LORA_TARGETS.get(model.config.model_type, "all-linear"),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # PEFT initialises A from the global generator
        return get_peft_model(model, config)


def load_trained(
    folder: Path, base: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel | PeftModel:
    """What `save_model` wrote: an adapter on `base`, or a whole model."""
    if (folder / "adapter_config.json").exists():
        return PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
    return load_model(str(folder), device, dtype).requires_grad_(True)


def unwrap(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The base model again, the adapter removed without a trace."""
    return model.unload() if isinstance(model, PeftModel) else model
