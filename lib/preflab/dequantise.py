"""A GGUF file becomes a plain Hugging Face folder: safetensors, config, tokenizer, chat template.

transformers reads the file (docs: "GGUF and interaction with Transformers"); the package `gguf` turns blocks of a few
bits into floats. transformers refuses to save a model that was loaded so, because its config still says that it is
quantised. So the weights go into a fresh model of the same config without that entry.

The folder is in float32. A dequantised value is a 16-bit scale times a small integer (plus an offset): float32 holds
it exactly, and bfloat16 with its 8 bits would round it once more.
"""

import contextlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from preflab.errors import BadInput, first_line
from preflab.files import require_space, sha256, writing
from preflab.weights import write_provenance

PLAIN_TYPES = {"F64", "F32", "F16", "BF16"}  # of a GGUF's tensors: what is stored so was not quantised
BYTES = 4  # of a float32


def dequantise(file: Path, folder: Path, facts: dict[str, Any] | None = None) -> None:
    """Fill an existing, empty folder with the model of a GGUF file and its provenance.

    `facts` are what the caller knows; they go into the provenance and stand over what the file says of itself.

    Raises BadInput for a file that is no GGUF or is cut off, for an architecture that transformers does not read, and
    for a disk that is full.
    """
    about = inspect(file)
    parameters = about.pop("parameters")
    require_space(folder, BYTES * parameters)
    model, tokenizer = _read(file, about["architecture"])
    with writing(folder), _without_bars():
        _plain(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_provenance(folder, {**about, **(facts or {}), "gguf": {"name": file.name, "sha256": sha256(file)}})


def inspect(file: Path) -> dict[str, Any]:
    """What a GGUF says of itself: `source` in words, architecture, licence, tensors by type, number of parameters.

    Raises BadInput for what is no complete GGUF.
    """
    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:  # of a file that is cut off, whatever comes last
        raise BadInput(f"{file}: not readable as a GGUF: {first_line(error)}") from error
    types: Counter[str] = Counter()
    tensors: Counter[str] = Counter()
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] += int(tensor.n_elements)
        tensors[tensor.tensor_type.name] += 1
    if not types:
        raise BadInput(f"{file}: a GGUF without tensors, expected a model")
    largest = types.most_common(1)[0][0]
    licence = reader.get_field("general.license")
    return {
        "source": f"{'converted' if largest in PLAIN_TYPES else 'dequantised'} from {largest}",
        "architecture": str(reader.get_field("general.architecture").contents()),
        "licence": licence.contents() if licence else None,
        "tensors": dict(tensors),
        "parameters": types.total(),
    }


def _read(file: Path, architecture: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    where = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
    try:
        with _without_bars():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
            model, loading = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, output_loading_info=True, **where
            )
    except (ValueError, KeyError, RuntimeError, NotImplementedError, OSError) as error:
        if "not supported" in str(error) or isinstance(error, NotImplementedError):
            hint = "expected one that transformers reads as a causal language model, such as llama or qwen2"
            raise BadInput(f"{file}: architecture {architecture!r} is not supported, {hint}") from error
        raise BadInput(f"{file}: not loadable as {architecture!r}: {first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):  # else they would stay random, with no more than a warning
        raise BadInput(f"{file}: {len(missing)} tensors are missing ({missing[0]}, ...), expected a whole model")
    tokenizer.model_max_length = model.config.max_position_embeddings  # a GGUF's tokenizer does not know it
    return model, tokenizer


def _without_bars() -> contextlib.AbstractContextManager:
    """The bars of transformers for GGUF files and for saving heed none of its settings."""
    return contextlib.redirect_stderr(io.StringIO())


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights and generation config in a model that says nothing of quantisation."""
    config, generation = model.config, model.generation_config
    for entry in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, entry):
            delattr(config, entry)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = generation
    return plain
