"""Where and how precisely things are computed: device, dtype, threads. Decided here and nowhere else."""

import os
from dataclasses import replace
from typing import Literal

import torch

from preflab.errors import BadInput
from preflab.settings import Count, incidental, settings


@settings
class Hardware:
    """Section `hardware`."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"  # of models that train and speak
    workers: Count = incidental(2)  # processes that train or measure at the same time; 1 on a GPU
    scoring: Literal["float32", "float64", "bfloat16"] = "float32"  # of models that are measured, if it is finer

    def resolved(self) -> "Hardware":
        """With the device that "auto" stands for on this machine. Raises BadInput as `resolve_device`."""
        return replace(self, device=resolve_device(self.device).type)

    @property
    def torch_device(self) -> torch.device:
        return resolve_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return resolve_dtype(self.dtype)

    @property
    def scoring_dtype(self) -> torch.dtype:
        """Of log-probs and gradients that are reported: bfloat16 alone would blur a margin by tenths of a nat."""
        return torch.promote_types(self.torch_dtype, resolve_dtype(self.scoring))


def resolve_device(device: str) -> torch.device:
    """The device to run on: "auto" takes CUDA, then MPS, then the CPU. Raises BadInput for one that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [name for name, is_there in there.items() if is_there]
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


def share_cores(workers: int, tiny: bool) -> None:
    """One thread a process for tiny models: their matrices gain little from more, and their sums, and so the results,
    do not depend on how many cores a machine has. The workers of a real model share all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(1 if tiny else max(1, cores // workers))


def device_name(device: str) -> str:
    resolved = resolve_device(device)
    return torch.cuda.get_device_name(resolved) if resolved.type == "cuda" else resolved.type


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, on the CPU if the tensor's device (MPS) has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
