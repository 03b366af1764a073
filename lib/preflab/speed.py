"""What work costs on a device: seconds, GPU memory at its peak, and the speed that its matrix products reach."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

SIDES = {"cuda": 8192}  # of the matrices that the peak is measured on; smaller ones do not fill a GPU
SIDE = 1024  # on another device
PRODUCTS = 10  # the first ones warm up


def clock(device: torch.device) -> float:
    """Seconds on a clock, read when the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(do: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes."""
    began = clock(device)
    do()
    return clock(device) - began


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest of several products of two large matrices."""
    side = SIDES.get(device.type, SIDE)
    generator = torch.Generator(device).manual_seed(0)  # zeros would be faster: they cost a GPU less power
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(PRODUCTS))


def release() -> None:
    """Free what nobody holds any more, cycles included, and give a GPU's memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Peaks:
    """GPU memory at its peak by kind of work, in MB, models included. Other devices do not tell theirs."""

    device: torch.device
    found: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def of(self, work: str) -> Iterator[None]:
        """A context for some of this work; the largest peak of several counts."""
        release()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield
        if self.device.type == "cuda":
            self.found[work] = max(self.found.get(work, 0), torch.cuda.max_memory_allocated() // 2**20)
