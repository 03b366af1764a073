"""State of an interrupted training: weights, Adam's moments and a record, in one safetensors file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from preflab.errors import BadInput


def save_checkpoint(
    path: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, record: dict
) -> None:
    """Written aside and moved, so that what lies at `path` is whole. `record` holds JSON values."""
    tensors = {}
    for name, p in parameters.items():
        state = optimizer.state[p]
        tensors |= {f"p.{name}": p, f"m.{name}": state["exp_avg"], f"v.{name}": state["exp_avg_sq"]}
    tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    steps = int(optimizer.state[next(iter(parameters.values()))]["step"])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, f"{path}.tmp", metadata={"record": json.dumps(record), "steps": str(steps)})
    os.replace(f"{path}.tmp", path)


def load_checkpoint(path: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict:
    """Put weights and moments back; returns the record. Raises BadInput for a file that is not whole."""
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            metadata = file.metadata()
            record = json.loads(metadata["record"])
            for name, p in parameters.items():
                p.copy_(file.get_tensor(f"p.{name}"))
                optimizer.state[p] = {
                    "step": torch.tensor(float(metadata["steps"])),
                    "exp_avg": file.get_tensor(f"m.{name}").to(p),
                    "exp_avg_sq": file.get_tensor(f"v.{name}").to(p),
                }
    except Exception as error:  # safetensors raises its own type for a truncated file
        raise BadInput(f"checkpoint {path}: unreadable ({error}); delete it to start the training again") from error
    return record
