"""Models: tiny ones built from a shape, others by name, one code path for both; LoRA adapters.

Everything is saved in Hugging Face's and PEFT's own formats (safetensors) and loads through AutoModelForCausalLM,
AutoTokenizer and PeftModel.
"""

from pathlib import Path
from typing import Annotated, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preflab.attention import FUSED
from preflab.errors import BadInput, first_line
from preflab.hub import ask_hub_once
from preflab.settings import Count, CountOrNone, Share, settings

LORA_TARGETS = {  # every linear projection of a block, as in paper S
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


@settings
class Shape:
    """Shape of a model that is built from scratch."""

    architecture: Literal["gpt_neox", "llama"] = "gpt_neox"
    hidden_size: Annotated[Count, Field(ge=8)] = 64
    layers: Count = 3
    heads: Count = 4
    context: Annotated[Count, Field(ge=16)] = 64  # tokens of prompt and response

    def __post_init__(self):
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size={self.hidden_size}: expected a multiple of heads={self.heads}")


def tiny_model(config: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
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
    hf_config = {"gpt_neox": GPTNeoXConfig, "llama": LlamaConfig}[config.architecture](**shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers initialises from the global generator
        model = AutoModelForCausalLM.from_config(hf_config, attn_implementation=FUSED, dtype=torch.float32)
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
    if not Path(name).is_dir():
        ask_hub_once()
    try:
        model = kind.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            attn_implementation=FUSED,
            use_safetensors=True,
            trust_remote_code=False,
            **config,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInput(f"model {name!r}: not loadable: {first_line(error)}") from error
    model = model.to(device).eval()
    if kind is AutoModelForCausalLM:
        _check_head(model, name)
    return model


def weightless(name: str, dtype: torch.dtype, revision: str | None = None) -> PreTrainedModel:
    """A saved or hub model as shapes alone, on torch's meta device. Raises BadInput where it is out of reach."""
    config = _config(name, revision)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=FUSED, dtype=dtype)


def random_model(
    name: str, device: torch.device, dtype: torch.dtype, seed: int, revision: str | None = None
) -> PreTrainedModel:
    """A model of the shape in a saved or hub model's config.json, with random weights that are made on the device.

    Needs no weights on disk, and no room in main memory. Raises BadInput where the shape is out of reach.
    """
    config = _config(name, revision)
    with torch.random.fork_rng(), device:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=FUSED, dtype=dtype)
    model.eval()
    _check_head(model, name)
    return model


def _config(name: str, revision: str | None) -> PreTrainedConfig:
    if not Path(name).is_dir():
        ask_hub_once()
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"model {name!r}: not loadable: {first_line(error)}") from error


@torch.no_grad()
def _check_head(model: PreTrainedModel, name: str) -> None:
    """Raises BadInput if logits are more than head(hidden states), for they are computed so where they are needed.

    Some architectures cap or scale them (Gemma, Cohere, Granite).
    """
    ids = torch.arange(2, device=model.device)[None]
    states = model.base_model(ids, use_cache=False).last_hidden_state
    if not torch.equal(model.get_output_embeddings()(states), model(ids, use_cache=False).logits):
        raise BadInput(f"model {name!r}: caps or scales its logits, expected an architecture that does not, like Llama")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights (safetensors), config and tokenizer; for a PeftModel the adapter alone, in PEFT's format."""
    model.save_pretrained(folder)
    if not isinstance(model, PeftModel):
        tokenizer.save_pretrained(folder)


# --- LoRA ---------------------------------------------------------------------------------------


@settings
class Lora:
    """Section `lora`: an adapter on every projection of a block. Rank 0 means full fine-tuning."""

    rank: CountOrNone = 8
    alpha: CountOrNone = 16
    dropout: Share = 0.0


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


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model without an adapter that says the same: the adapter becomes part of its base's weights, in place."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def unwrap(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The base model again, the adapter removed without a trace."""
    return model.unload() if isinstance(model, PeftModel) else model
