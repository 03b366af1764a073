"""Published shapes of models: the numbers of their config.json, and no weights.

Their cost can be measured with random weights, for it does not depend on what a model has learnt. So no gated
download is needed, and no disk.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from preflab.errors import BadInput
from preflab.weights import write_provenance

PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {  # meta-llama/Llama-3.1-8B: 8,030,261,248 parameters
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "pythia-2.8b": {  # EleutherAI/pythia-2.8b: 2,775,208,960 parameters
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        "use_parallel_residual": True,
    },
}
TOKENIZER_OF = "smollm2"  # its ids, all below 49152, are among those of every shape above
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
NEEDED = 20_000_000  # bytes of disk


def write_shape(name: str, tokenizer: Path, folder: Path) -> None:
    """Fill `folder` with the config.json of a published shape and with the tokenizer of another model's folder.

    Raises BadInput where that tokenizer is not there.
    """
    if not (tokenizer / "tokenizer.json").is_file():
        raise BadInput(f"{name}: no tokenizer in {tokenizer}, expected one; run first: preflab model {TOKENIZER_OF}")
    for file in filter(Path.is_file, (tokenizer / name for name in TOKENIZER)):
        shutil.copyfile(file, folder / file.name)
    config = {**PUBLISHED[name], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_provenance(folder, {"model": name, "source": "shape and tokenizer, no weights", "tokenizer": TOKENIZER_OF})
