"""What training needs in memory, and what is free.

A model on torch's meta device has shapes and no numbers. What autograd would keep of each token is counted on it, in a
second, whatever the architecture and without its weights. The layout of the longest micro-batch says how many tokens
there are.
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from heapq import nlargest
from pathlib import Path

import torch
from transformers import PreTrainedModel

from preflab.layout import layout
from preflab.likelihood import LOGITS_AT_ONCE, collate, trunk_of
from preflab.models import Lora, trainable, weightless
from preflab.planning.work import tokens
from preflab.stages.base import Base
from preflab.stages.data import Pairs
from preflab.stages.evaluation import Evaluation
from preflab.stages.reference import SCORING_BATCH, ReferenceLogProbs
from preflab.stages.stage import Stage
from preflab.stages.training import TrainingFromPairs

LIBRARIES = 700_000_000  # bytes of a process with libraries and data, where the system does not say
KEPT_FREE = 1.3  # what the allocator holds over what is in use: 2.8 GB were measured (SmolLM2, TruthfulQA), 2.4 counted
COUNTED = 16  # tokens that are counted on: few, because the meta device's attention keeps its weights, the real one not


@dataclass(frozen=True)
class Shape:
    """What the shapes of a policy and its base say. Sizes are in bytes."""

    parameters: int  # an adapter's too
    trained: int
    weights: int  # of all models that a run holds at once
    state: int  # gradients and Adam's moments
    kept: float  # what autograd keeps of a token
    layer: float  # what one layer has of a token while it is computed


@lru_cache(maxsize=8)
def shape_of(base: Base, lora: Lora, checkpointing: bool) -> Shape:
    """Of a base that is there, without loading its weights."""
    dtype, scoring = base.hardware.torch_dtype, base.hardware.scoring_dtype
    model = weightless(base.location, dtype, base.revision)
    own = model.num_parameters()
    policy = trainable(model, lora, 0).train()
    kept = whole = kept_of_a_token(policy)
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        kept = kept_of_a_token(policy)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    weights = (own + trained) * dtype.itemsize  # full fine-tuning trains a copy of the base
    if scoring != dtype:
        weights += own * scoring.itemsize
    parameters = own + trained if lora.rank else own
    layer = whole / policy.config.num_hidden_layers
    return Shape(parameters, trained, weights, 3 * trained * dtype.itemsize, kept, layer)


def kept_of_a_token(policy: PreTrainedModel) -> float:
    """Bytes that autograd keeps of a token in a forward pass of the trunk, weights left out."""
    weights = {p.untyped_storage()._cdata for p in policy.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    ids = torch.zeros(1, COUNTED, dtype=torch.long, device=policy.device)
    mask = torch.zeros(1, 1, COUNTED, COUNTED, dtype=policy.dtype, device=policy.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = trunk_of(policy)(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=False)
    del result
    return sum(storage.nbytes() for storage in kept.values()) / COUNTED


@dataclass(frozen=True)
class Need:
    """Bytes that a process needs at its peak."""

    libraries: int  # and data: all that a process has before it loads a model
    weights: int
    state: int
    training: int  # on the longest micro-batch
    scoring: int  # of the longest batch

    @property
    def total(self) -> int:
        return self.libraries + self.weights + self.state + max(self.training, self.scoring)


def needed(stages: list[Stage]) -> Need | None:
    """What it takes to make these stages in a process like this one; None if nothing is known.

    It takes the longest pairs of all for a micro-batch, so training may need less.
    """
    try:
        return _needed(stages)
    except RuntimeError:  # an architecture whose forward pass asks for numbers, as one with experts does
        return None


def _needed(stages: list[Stage]) -> Need | None:
    shapes, state, training, scoring = [], [0], [0], [0]
    for stage in stages:
        if isinstance(stage, TrainingFromPairs):
            checkpointing = stage.loop.activation_checkpointing
            shape = shape_of(stage.base, stage.lora, checkpointing)
            of_a_token = shape.kept + (shape.layer if checkpointing else 0)
            training.append(_pass(stage.pairs, stage.base, stage.loop.micro_batch_size, of_a_token, gradient=True))
            state.append(shape.state)
        elif isinstance(stage, ReferenceLogProbs | Evaluation):
            trained = stage.training if isinstance(stage, Evaluation) else None
            shape = shape_of(stage.base, trained.lora if trained else Lora(), False)
            scored = stage.held_out if isinstance(stage, Evaluation) else (stage.pairs,)
            scoring += [_pass(pairs, stage.base, SCORING_BATCH, shape.layer) for pairs in scored]
        else:
            continue
        shapes.append(shape)
    if not shapes:
        return None
    return Need(resident() or LIBRARIES, max(s.weights for s in shapes), max(state), max(training), max(scoring))


@lru_cache(maxsize=256)
def _pass(pairs: Pairs, base: Base, size: int, of_a_token: float, gradient: bool = False) -> int:
    """Bytes of activations and logits in a pass of the longest pairs."""
    model = _bare(base)
    batch = collate(longest(pairs.encoded(base), size), base.tokenizer().pad_token_id, torch.device("cpu"))
    inputs = layout(batch, model).inputs
    logits = min(LOGITS_AT_ONCE, int(batch["completion_mask"].sum()) * model.config.vocab_size)
    at_once = 4 if gradient else 2  # logits and log-softmax, and the gradients of both
    activations = inputs["input_ids"].numel() * of_a_token + sum(t.nbytes for t in inputs.values())
    return round(KEPT_FREE * activations + at_once * logits * max(4, model.dtype.itemsize))


@lru_cache(maxsize=4)
def _bare(base: Base) -> PreTrainedModel:
    return weightless(base.location, base.hardware.torch_dtype, base.revision)


def longest(rows: list[dict], size: int) -> list[dict]:
    """The longest pairs: no micro-batch of so many is larger."""
    return nlargest(size, rows, key=lambda row: tokens([row]))


# --- this machine -------------------------------------------------------------------------------


def free_memory() -> int | None:
    """Bytes that this process and its children may still take; None where nobody says so (other systems than Linux)."""
    try:
        (kib,) = re.findall(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    except (OSError, ValueError):
        return None
    return min([1024 * int(kib), *_left_in_group()])


def _left_in_group() -> list[int]:
    """What a container's limit leaves, if there is one; pages of files that were read can go."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
        (files,) = re.findall(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # none, or "max"
        return []
    return [limit - used + int(files)]


def resident() -> int:
    """Bytes of this process in memory; 0 where nobody says so."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
