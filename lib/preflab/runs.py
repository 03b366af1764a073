"""One run of a notebook: where it writes, what it records, how work is spread over processes."""

import atexit
import hashlib
import json
import math
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

import preflab
from preflab.cache import Cache, digest
from preflab.claims import Claim
from preflab.errors import BadInput
from preflab.parameters import Parameters
from preflab.paths import project_root, results_root


def cache() -> Cache:
    """The one cache that notebooks share."""
    return Cache(results_root() / "cache")


class Run:
    """Collects what a notebook produces and puts it in place in one move: results/PROFILE/NAME/."""

    def __init__(self, parameters: Parameters):
        self.parameters, self.started, self.git = parameters, time.time(), git_state()
        self.folder = results_root() / parameters.profile / parameters.name
        # `preflab run` removes its own folder also where this process is killed.
        where = Path(os.environ.get("PREFLAB_STAGING") or self.folder.parent)
        self.staging = where / f".{parameters.name}.{os.getpid()}"
        try:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(parents=True)
        except OSError as error:
            raise BadInput(f"results folder {self.folder.parent}: not writable ({error.strerror})") from error
        atexit.register(shutil.rmtree, self.staging, ignore_errors=True)

    def figure(self, name: str, figure: Figure) -> Figure:
        """Keep a figure as NAME.png. Returns it, closed, so that a cell that ends with this call shows it once."""
        figure.savefig(self.staging / f"{name}.png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        return figure

    def finish(
        self, claims: Iterable[Claim], metrics: dict, series: dict | None = None, data: dict | None = None
    ) -> Path:
        """Write metrics.json, provenance.json and a sidecar for each figure; returns the folder.

        `metrics` are single numbers, `series` lists, `data` the fingerprints and reports of what was read.
        """
        provenance = self._provenance(data or {})
        content = {"claims": list(claims), "metrics": metrics, "series": series or {}}
        _write_json(self.staging / "metrics.json", content)
        _write_json(self.staging / "provenance.json", provenance)
        for picture in self.staging.glob("*.png"):
            sha = hashlib.sha256(picture.read_bytes()).hexdigest()
            _write_json(picture.with_suffix(".json"), {"figure": picture.name, "sha256": sha, **provenance})
        old = self.staging.with_name(f"{self.staging.name}.old")
        if self.folder.exists():
            os.replace(self.folder, old)
        os.replace(self.staging, self.folder)
        shutil.rmtree(old, ignore_errors=True)
        return self.folder

    def _provenance(self, data: dict) -> dict:
        values = self.parameters.model_dump(mode="json")
        return {
            "name": self.parameters.name,
            "command": os.environ.get("PREFLAB_COMMAND"),  # None in JupyterLab
            "inputs": os.environ.get("PREFLAB_INPUTS"),  # by which `preflab reproduce` knows what is up to date
            "parameters": values,
            "parameters_hash": digest(values),
            "preflab": preflab.__version__,
            "git": self.git,
            "versions": versions(),
            "platform": f"{platform.system()} {platform.machine()}",
            "device": device_name(self.parameters.device),
            "data": data,
            "wall_seconds": round(time.time() - self.started, 1),
            "peak_memory_mb": peak_memory(),
        }


def git_state() -> dict[str, str | bool | None]:
    """Commit and whether tracked files differ from it; None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(project_root()), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def versions() -> dict[str, str]:
    """What a reader needs to compare runs; a notebook's first output."""
    names = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def device_name(device: str) -> str:
    from preflab.models import resolve_device  # imports transformers

    resolved = resolve_device(device)
    return torch.cuda.get_device_name(resolved) if resolved.type == "cuda" else resolved.type


def peak_memory() -> dict[str, int]:
    """Peak resident memory in MB of this process and of its largest worker."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    who = {"main": resource.RUSAGE_SELF, "largest_worker": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(which).ru_maxrss // unit for name, which in who.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(jsonable(value), indent=1, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """Dataclasses, arrays and NumPy numbers as plain JSON; what is not finite becomes null."""
    if is_dataclass(value):
        return jsonable(asdict(value))
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [jsonable(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if math.isfinite(value) else None  # a learning rate of 5e-7 stays one
    return value.item() if isinstance(value, np.generic) else value


# --- progress -----------------------------------------------------------------------------------


class Progress:
    """One line that is rewritten: in a notebook's output, and in $PREFLAB_PROGRESS for `preflab run`.

    What stays in a committed notebook is the last line alone, and it does not depend on the machine.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.done = what, total, done
        self.handle = _display_handle()
        self._show("")

    def advance(self, label: str = "") -> None:
        self.done += 1
        self._show(label)

    def _show(self, label: str) -> None:
        line = f"{self.what}: {self.done} of {self.total}"
        detail = f"{line}  {label}" if self.done < self.total else line
        if self.handle:
            self.handle.update({"text/plain": detail}, raw=True)
        note(f"{line}  {label}")


def note(line: str) -> None:
    """A line of progress for `preflab run`, from any process of the run."""
    if path := os.environ.get("PREFLAB_PROGRESS"):
        with open(path, "a") as file:
            file.write(f"{line}\n")


def _display_handle():
    if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None:
        return None
    from IPython.display import display

    return display({"text/plain": ""}, raw=True, display_id=True)


# --- processes ----------------------------------------------------------------------------------


def _quiet() -> None:
    """No progress bars and advisory warnings of the libraries: a notebook shows what it says."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    os.environ["TQDM_DISABLE"] = "1"  # TRL's
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def prepare() -> None:
    """Quiet libraries, and one thread a process: sums, and so results, must not depend on the machine's
    cores, and matrices this small gain little from more. `parallel` is what uses the cores."""
    _quiet()
    torch.set_num_threads(1)


def parallel(
    function: Callable,
    phases: dict[str, list | Callable[[], list]],
    workers: int,
    ready: Callable[[Any], bool] = lambda job: False,
) -> None:
    """function(job) for every job of every phase, in `workers` processes of one thread each.

    Jobs of a phase stand alone and may need those of earlier phases, and what jobs there are may be told only once
    those are done. `function` and jobs are picklable; what jobs make they leave in the cache, and those that are
    `ready` there are not sent out. The first error stops the rest. On a GPU use workers=1, which stays in this process.
    """
    pool = None
    try:
        for what, jobs in phases.items():
            jobs = jobs() if callable(jobs) else jobs
            missing = [job for job in jobs if not ready(job)]
            if pool is None and min(workers, len(missing)) > 1:
                pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), prepare)
            progress = Progress(what, len(jobs), done=len(jobs) - len(missing))
            for job in _done(function, missing, pool):
                progress.advance(str(job))
    finally:
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)


def _done(function: Callable, jobs: list, pool: ProcessPoolExecutor | None) -> Iterator:
    """The jobs as they get done."""
    if pool is None:
        for job in jobs:
            function(job)
            yield job
        return
    futures = {pool.submit(function, job): job for job in jobs}
    for future in as_completed(futures):
        future.result()
        yield futures[future]
