"""Where and how precisely things are computed: device, dtype, threads. Decided here and nowhere else."""

from dataclasses import replace
from typing import Literal

import torch

from preflab.errors import BadInput
from preflab.settings import Count, incidental, settings


@settings
class Hardware:
    """Section `hardware`."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    workers: Count = incidental(2)  # processes that train or measure at the same time; 1 on a GPU

    def resolved(self) -> "Hardware":
        """With the device that "auto" stands for on this machine. Raises BadInput as `resolve_device`."""
        return replace(self, device=resolve_device(self.device).type)

    @property
    def torch_device(self) -> torch.device:
        return resolve_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return resolve_dtype(self.dtype)


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


def one_thread() -> None:
    """One thread a process. Sums, and so results, must not depend on how many cores a machine has, and matrices
    this small gain little from more threads."""
    torch.set_num_threads(1)


def device_name(device: str) -> str:
    resolved = resolve_device(device)
    return torch.cuda.get_device_name(resolved) if resolved.type == "cuda" else resolved.type


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, on the CPU if the tensor's device (MPS) has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
