"""Work spread over processes, and a line that shows how far it is."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from preflab.progress import note, show_with, time_left
from preflab.running.cache import Cache
from preflab.running.quiet import quiet
from preflab.stages.stage import Job, Phases, keep_in, store


def parallel(phases: Phases, workers: int) -> None:
    """Make the stages of every job of every phase, in `workers` processes.

    Jobs of a phase stand alone and may need those of earlier phases; a phase may be a function, called when those are
    done. What jobs make they leave in the cache, and what is there already is not made again. The first error stops
    the rest. On a GPU use workers=1, which stays in this process.
    """
    pool = None
    try:
        for what, jobs in phases.items():
            jobs = jobs() if callable(jobs) else jobs
            missing = [job for job in jobs if not job.done()]
            if pool is None and min(workers, len(missing)) > 1:
                pool = _pool(workers)
            progress = Progress(what, len(jobs), done=len(jobs) - len(missing))
            for job in _done(missing, pool):
                progress.advance(job.label)
    finally:
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    start = (store().root, _progress_file[0] if _progress_file else None, os.getpid(), torch.get_num_threads())
    return ProcessPoolExecutor(workers, context, _start_worker, start)


def _done(jobs: list[Job], pool: ProcessPoolExecutor | None) -> Iterator[Job]:
    """The jobs as they get done."""
    if pool is None:
        for job in jobs:
            job.run()
            yield job
        return
    futures = {pool.submit(job.run): job for job in jobs}
    for future in as_completed(futures):
        future.result()
        yield futures[future]


def _start_worker(cache: Path, progress: Path | None, parent: int, threads: int) -> None:
    quiet()
    torch.set_num_threads(threads)
    keep_in(Cache(cache))
    if progress:
        show_progress_in(progress)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A worker whose parent was killed ends too; nobody else would end it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


# --- progress -----------------------------------------------------------------------------------

_progress_file: list[Path] = []


def show_progress_in(file: Path) -> None:
    """From now on this process, and the workers that it starts, append their lines to a file."""
    _progress_file[:] = [file]

    def append(line: str) -> None:
        with file.open("a") as lines:
            lines.write(f"{line}\n")

    show_with(append)


class Progress:
    """One line that is rewritten in a notebook's output, and noted for `preflab run`.

    What stays in a committed notebook is the last line alone, and it does not depend on the machine.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.done, self.began, self.first = what, total, done, time.monotonic(), done
        self.handle = _display_handle()
        self._show("")

    def advance(self, label: str = "") -> None:
        self.done += 1
        self._show(label)

    def _show(self, label: str) -> None:
        line = f"{self.what}: {self.done} of {self.total}"
        detail = f"{line}  {label}{self._left()}".rstrip() if self.done < self.total else line
        if self.handle:
            self.handle.update({"text/plain": detail}, raw=True)
        note(detail)

    def _left(self) -> str:
        """The time left, if what is still to do takes as long as what was done."""
        if self.done == self.first:
            return ""
        return ", " + time_left((time.monotonic() - self.began) / (self.done - self.first) * (self.total - self.done))


def _display_handle():
    if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None:
        return None
    from IPython.display import display

    return display({"text/plain": ""}, raw=True, display_id=True)
