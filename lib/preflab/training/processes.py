"""Several accelerate processes that end with the numbers of one: jobs go round, results are put back in order."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

Job, Result = TypeVar("Job"), TypeVar("Result")


def spread(accelerator: Accelerator, jobs: Sequence[Job], function: Callable[[Job], Result]) -> list[Result]:
    """function(job) for every job, each in one process; every process gets all results, in order."""
    rank, size = accelerator.process_index, accelerator.num_processes
    mine = [(i, function(jobs[i])) for i in range(rank, len(jobs), size)]
    everyones = gather_object(mine) if size > 1 else mine
    return [result for _, result in sorted(everyones, key=lambda pair: pair[0])]


def zero_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Zeros, not None: a process without a micro-batch has its zeros to add."""
    for p in parameters:
        p.grad = torch.zeros_like(p)


def sum_gradients(
    accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter], totals: torch.Tensor
) -> torch.Tensor:
    """Add up .grad over the processes in place; returns the totals added up."""
    if accelerator.num_processes > 1:
        for p in parameters:
            p.grad.copy_(accelerator.reduce(p.grad, "sum"))
        totals = accelerator.reduce(totals, "sum")
    return totals
