"""One run of a notebook: how it starts, where it writes, what it records."""

import atexit
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure
from pydantic import BaseModel

import preflab
from preflab.claims import Claim
from preflab.errors import BadInput
from preflab.experiments import EXPERIMENTS
from preflab.experiments.experiment import Parameters
from preflab.figures import theme
from preflab.figures.described import described
from preflab.files import sha256
from preflab.hardware import device_name, share_cores
from preflab.paths import project_root, results_root
from preflab.planning.fit import check_memory
from preflab.running.cache import Cache
from preflab.running.identity import digest
from preflab.running.parallel import show_progress_in
from preflab.running.quiet import quiet
from preflab.running.reading import defaults
from preflab.running.records import PROGRESS, jsonable, made_in, staging_of, take_place, write_json
from preflab.stages.stage import keep_in


def start(parameters: Parameters) -> "Run":
    """What every notebook begins with: quiet libraries, its share of the cores, the one cache, one look for figures.

    Raises BadInput for data or a model that cannot be used, and if what the notebook would make does not fit in memory.
    """
    quiet()
    share_cores(parameters.hardware.workers, parameters.tiny)
    theme()
    _describe_pictures()
    pd.options.display.max_colwidth = None
    keep_in(Cache(results_root() / "cache"))
    if not staging_of(_folder(parameters), os.getppid()).is_dir():  # else `preflab run` has looked already
        parameters.check_there()
    check_memory(parameters)
    return Run(parameters)


class Run:
    """Collects what a notebook produces and puts it in place in one move: results/PROFILE/NAME/.

    `preflab run` makes that move itself, when the notebook is written too.
    """

    def __init__(self, parameters: Parameters):
        self.parameters, self.started, self.git = parameters, time.time(), git_state()
        self.folder = _folder(parameters)
        self.staging = staging_of(self.folder, os.getpid())
        try:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(parents=True)
        except OSError as error:
            raise BadInput(f"results folder {self.folder.parent}: not writable ({error.strerror})") from error
        self.words: dict[str, str] = {}  # of each figure
        self.command = staging_of(self.folder, os.getppid())  # of `preflab run`; there is none in JupyterLab
        if self.command.is_dir():
            show_progress_in(self.command / PROGRESS)
        atexit.register(shutil.rmtree, self.staging, ignore_errors=True)

    def overview(self) -> None:
        """Print versions, device and every value in force, by section; a star marks what differs from the notebook's
        own value."""
        stem = next(stem for stem, kind in EXPERIMENTS.items() if type(self.parameters) is kind)
        changed = self.parameters.changed(defaults(project_root() / "notebooks" / "src" / f"{stem}.py"))
        parts = {"versions": [f"{k} {v}" for k, v in versions().items()], "device": [self.device]}
        for name, value in self.parameters.values().items():
            section, _, own = name.partition(".")
            star = "*" if name in changed else ""
            if isinstance(value, dict):  # rows by name, as the parameters cell has them
                parts[section] = ["; ".join(f"{star}{row} {_short(content)}" for row, content in value.items())]
            else:
                words = f"{star}{own or section} {_short(value)}"
                parts.setdefault(section if own else "notebook", []).append(words)
        indent = " " * 17
        for section, values in parts.items():
            print(textwrap.fill(", ".join(values), 118, initial_indent=f"{section:<17}", subsequent_indent=indent))
        print("* differs from this notebook's own value" if changed else "all values are this notebook's own")

    @property
    def device(self) -> str:
        return device_name(self.parameters.hardware.device)

    def figure(self, name: str, figure: Figure) -> Figure:
        """Keep a figure as NAME.png. Returns it, closed, so that a cell that ends with this call shows it once."""
        figure.savefig(self.staging / f"{name}.png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        self.words[f"{name}.png"] = described(figure)
        plt.close(figure)
        return figure

    def finish(
        self, claims: Iterable[Claim], metrics: dict, series: dict | None = None, data: dict | None = None
    ) -> Path:
        """Write metrics.json, provenance.json and a sidecar for each figure; returns the folder of the results.

        `metrics` are single numbers, `series` lists, `data` the fingerprints and reports of what was read.
        """
        provenance = self._provenance(data or {})
        content = {"claims": list(claims), "metrics": metrics, "series": series or {}}
        write_json(self.staging / "metrics.json", content)
        write_json(self.staging / "provenance.json", provenance)
        for picture in self.staging.glob("*.png"):
            of = {"figure": picture.name, "sha256": sha256(picture), "alt": self.words[picture.name]}
            write_json(picture.with_suffix(".json"), {**of, **provenance})
        take_place(self.staging, made_in(self.command) if self.command.is_dir() else self.folder)
        return self.folder

    def _provenance(self, data: dict) -> dict:
        values = jsonable(self.parameters)
        return {
            "name": self.parameters.name,
            "command": None,  # `preflab run` adds itself
            "inputs": None,  # likewise, so that `preflab reproduce` knows what is up to date
            "parameters": values,
            "parameters_hash": digest(values),
            "preflab": preflab.__version__,
            "git": self.git,
            "versions": versions(),
            "platform": f"{platform.system()} {platform.machine()}",
            "device": self.device,
            "data": data,
            "wall_seconds": round(time.time() - self.started, 1),
            "peak_memory_mb": peak_memory(),
        }


def _describe_pictures() -> None:
    """A figure that a cell shows has its words as `alt` in its metadata, where nbconvert and the site look for them."""
    if shell := get_ipython():
        plt.switch_backend(plt.get_backend())  # else the first figure loads it, and it puts its own formatter in place
        pictures = shell.display_formatter.formatters["image/png"]
        pictures.for_type(Figure, lambda figure: (print_figure(figure, base64=True), {"alt": described(figure)}))


def _folder(parameters: Parameters) -> Path:
    return results_root() / parameters.profile / parameters.name


def _short(value: Any) -> str:
    """A value as JSON; of a row of parameters what differs from its defaults."""
    content = value.model_dump(exclude_defaults=True) if isinstance(value, BaseModel) else value
    return json.dumps(jsonable(content), ensure_ascii=False)


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
    """What a reader needs to compare runs."""
    names = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def peak_memory() -> dict[str, int]:
    """Peak resident memory in MB of this process and of its largest worker."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    who = {"main": resource.RUSAGE_SELF, "largest_worker": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(which).ru_maxrss // unit for name, which in who.items()}
