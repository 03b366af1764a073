"""Executing notebooks without JupyterLab: papermill, with checked parameters and nothing left behind."""

import json
import logging
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError

from preflab import paths
from preflab.cache import code_version, digest, library_versions
from preflab.errors import BadInput
from preflab.parameters import Parameters

OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of every parameter it cannot parse


class NotebookFailed(RuntimeError):
    """A cell raised something that is no BadInput; the message names it and the notebook that was kept."""


def find_notebook(name: str, folder: str = "notebooks", suffix: str = "ipynb") -> Path:
    """The notebook of a run: of those whose stem begins `name`, the longest. Raises BadInput."""
    notebooks = sorted((paths.project_root() / folder).glob(f"*.{suffix}"))
    fitting = [notebook for notebook in notebooks if name.startswith(notebook.stem)]
    if not fitting:
        known = ", ".join(notebook.stem for notebook in notebooks) or "none found"
        raise BadInput(f"{name}: no notebook of this name in {folder}/, expected one of: {known}")
    return max(fitting, key=lambda notebook: len(notebook.stem))


def find_parameters(profile: str) -> dict[str, Path]:
    """The YAML files of a profile by name, in order. Raises BadInput where there is no such profile."""
    files = sorted((paths.project_root() / "params" / profile).glob("*.yaml"))
    if not files:
        known = sorted({file.parent.name for file in (paths.project_root() / "params").glob("*/*.yaml")})
        raise BadInput(f"profile {profile!r}: no such profile in params/, expected one of: {', '.join(known)}")
    return {file.stem: file for file in files}


def results_folder(parameters: Parameters) -> Path:
    return paths.results_root() / parameters.profile / parameters.name


def execute(
    notebook: nbformat.NotebookNode,
    given: dict,
    parameters: Parameters,
    command: str,
    show: Callable[[str], object],
) -> nbformat.NotebookNode:
    """Execute with `given` over the notebook's own values; the result stands in `results_folder`.

    `parameters` is what they come to, `command` what provenance.json records, and `show` is called
    with each line of progress. Raises BadInput, also for one raised by a cell, MemoryError, and
    NotebookFailed for the rest. Whatever stops it, no half-written result and no process stay behind.
    """
    folder = results_folder(parameters)
    with _workspace(folder) as workspace:
        source, output = workspace / "source.ipynb", workspace / "notebook.ipynb"
        progress = workspace / "progress"
        progress.touch()
        nbformat.write(notebook, source)
        environment = {
            "PREFLAB_STAGING": str(workspace),
            "PREFLAB_PROGRESS": str(progress),
            "PREFLAB_COMMAND": command,
            "PREFLAB_INPUTS": inputs(notebook, parameters),
        }
        try:
            _run_papermill(source, output, given, _kernel(workspace / "kernels", environment), progress, show)
        except papermill.PapermillExecutionError as error:
            _explain(error.ename, error.evalue, output, folder)
        except DeadKernelError:
            _explain("DeadKernelError", "the notebook's process was killed; out of memory?", output, folder)
        folder.mkdir(exist_ok=True)
        os.replace(output, folder / "notebook.ipynb")
        _failed(folder).unlink(missing_ok=True)
    return nbformat.read(folder / "notebook.ipynb", as_version=4)


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the results, on their file system, gone in the end."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise BadInput(f"results folder {folder.parent}: not writable ({error.strerror})") from None
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _kernel(folder: Path, environment: dict[str, str]) -> type[AsyncKernelManager]:
    """Kernels of this very interpreter, whatever kernelspecs are installed, with `environment` added."""
    write_kernel_spec(folder / "python3", {"env": environment}, ["--log-level=CRITICAL"])
    specs = KernelSpecManager(kernel_dirs=[str(folder)])

    class Kernel(AsyncKernelManager):
        started: list[AsyncKernelManager] = []  # noqa: RUF012  one class per run

        def __init__(self, **traits):
            super().__init__(kernel_spec_manager=specs, **traits)
            self.started.append(self)

    return Kernel


def _run_papermill(
    source: Path,
    output: Path,
    given: dict,
    kernel: type[AsyncKernelManager],
    progress: Path,
    show: Callable[[str], object],
) -> None:
    """papermill in a thread: this one shows progress and gets the signals, which nbclient would take."""
    with ThreadPoolExecutor(1) as pool, progress.open() as lines:
        run = pool.submit(
            papermill.execute_notebook,
            source,
            output,
            given,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            kernel_manager_class=kernel,
        )
        try:
            running = True
            while running:
                running = wait([run], timeout=0.2).not_done
                for line in lines:
                    show(line.rstrip())
        except BaseException:
            while wait([run], timeout=0.5).not_done:  # else leaving the pool waits for the notebook to end
                _kill(kernel)
            raise
        run.result()


def _kill(kernel: type[AsyncKernelManager]) -> None:
    for manager in kernel.started:
        if manager.provisioner and manager.provisioner.pgid:
            with suppress(ProcessLookupError):
                os.killpg(manager.provisioner.pgid, signal.SIGKILL)  # its worker processes too


def _failed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.failed.ipynb")


def _explain(ename: str, evalue: str, output: Path, folder: Path) -> None:
    """Raise what an error in a cell means here."""
    if ename == "BadInput":
        raise BadInput(evalue) from None
    first = (evalue.strip().splitlines() or [""])[0]
    if ename in OUT_OF_MEMORY:
        raise MemoryError(first) from None
    os.replace(output, _failed(folder))
    raise NotebookFailed(f"{ename}: {first} (see {_failed(folder)})") from None


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook as it is committed: nothing of papermill, of the clock or of the machine."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"  # papermill's ids would change with every execution
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _silent(output)]
    return notebook


def _silent(output: nbformat.NotebookNode) -> bool:
    return output.get("name") == "stderr" and not output.text.strip()


def inputs(notebook: nbformat.NotebookNode, parameters: Parameters) -> str:
    """Digest of everything that decides a run's results, but data outside the project."""
    cells = [cell.source for cell in notebook.cells]
    code = {"code": code_version(without=frozenset()), "versions": library_versions()}
    return digest({"cells": cells, "parameters": parameters.model_dump(mode="json"), **code})


def up_to_date(notebook: nbformat.NotebookNode, parameters: Parameters) -> bool:
    """Whether the results at hand are what a run would make. Of data outside the project nobody knows."""
    provenance = results_folder(parameters) / "provenance.json"
    if re.search(r"'(files|hub):", str(parameters.model_dump())) or not provenance.exists():
        return False
    return json.loads(provenance.read_text()).get("inputs") == inputs(notebook, parameters)


def read_claims(folder: Path) -> list[dict]:
    """The claims in a folder's metrics.json; none where it has none."""
    metrics = folder / "metrics.json"
    return json.loads(metrics.read_text())["claims"] if metrics.exists() else []
