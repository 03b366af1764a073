"""Executing notebooks without JupyterLab: papermill, with checked parameters and nothing left behind."""

import logging
import os
import platform
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager

from preflab import paths
from preflab.cells import literals
from preflab.errors import BadInput, disk_fault
from preflab.parsing import read_json
from preflab.running.code import package
from preflab.running.identity import digest, library_versions
from preflab.running.records import PROGRESS, made_in, staging_of, take_place, write_json

LANGUAGE = {  # what JupyterLab writes: saving an untouched notebook then changes nothing
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # also NumPy's _ArrayMemoryError
KILLED = {
    "DeadKernelError": "the notebook's process was killed; out of memory?",
    "BrokenProcessPool": "a worker process was killed; out of memory?",
}
HUSH = "__import__('logging').getLogger('asyncio').setLevel(50)"  # it tells of tasks that a kernel's end destroys
CLAIM = ("id", "statement", "value", "interval", "verdict")
logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it tells of what is raised too


class NotebookFailed(RuntimeError):
    """A cell raised something that is no BadInput; the message names it and the notebook that was kept."""


def results_folder(profile: str, name: str) -> Path:
    return paths.results_root() / profile / name


def execute(
    notebook: nbformat.NotebookNode,
    given: dict,
    folder: Path,
    command: str,
    show: Callable[[str], object],
) -> nbformat.NotebookNode:
    """Execute with `given` over the notebook's own values; the result stands in `folder`.

    `command` is what provenance.json records, and `show` is called with each line of progress. Raises BadInput, also
    for one raised by a cell, MemoryError, and NotebookFailed for the rest. Whatever stops it, no half-written result
    and no process stay behind.
    """
    with _workspace(folder) as workspace:
        source, output = workspace / "source.ipynb", workspace / "notebook.ipynb"
        nbformat.write(notebook, source)
        try:
            _run_papermill(source, output, given, _kernel(workspace / "kernels"), folder, show)
        except papermill.PapermillExecutionError as error:
            _explain(error.ename, error.evalue, output, folder)
        except RuntimeError as error:
            if "Kernel died" not in str(error):  # DeadKernelError, or a plain one before the kernel's first answer
                raise
            _explain("DeadKernelError", str(error), output, folder)
        made = made_in(workspace)
        made.mkdir(exist_ok=True)  # a notebook without a run has made nothing
        os.replace(output, made / "notebook.ipynb")
        _sign(made, {"command": command, "inputs": inputs(notebook, given)})
        take_place(made, folder)
        _failed(folder).unlink(missing_ok=True)
    return nbformat.read(folder / "notebook.ipynb", as_version=4)


def _sign(folder: Path, record: dict[str, str]) -> None:
    """Add to provenance.json and to the figures' sidecars how the run was started."""
    for file in folder.glob("*.json"):
        content = read_json(file)
        if file.name == "provenance.json" or "figure" in content:
            write_json(file, {**content, **record})


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the results, on their file system, gone in the end. What killed runs left goes first."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"results folder {folder}: is a file, expected a folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*"):
            if not _alive(left.name.removeprefix(f".{folder.name}.").partition(".")[0]):
                shutil.rmtree(left, ignore_errors=True)
        workspace = staging_of(folder, os.getpid())
        workspace.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(f"results folder {folder.parent}: not writable ({error.strerror})") from None
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _kernel(folder: Path) -> type[AsyncKernelManager]:
    """Kernels of this very interpreter, whatever kernelspecs are installed; all that starts one lies in `folder`."""
    write_kernel_spec(folder / "python3", None, ["--log-level=CRITICAL", f"--IPKernelApp.exec_lines={HUSH}"])
    specs = KernelSpecManager(kernel_dirs=[str(folder)])

    class Kernel(AsyncKernelManager):
        started: list[AsyncKernelManager] = []  # noqa: RUF012  one class per run

        def __init__(self, **traits):
            connection = str(folder / "connection.json")
            super().__init__(kernel_spec_manager=specs, connection_file=connection, **traits)
            self.started.append(self)

    return Kernel


def _run_papermill(
    source: Path,
    output: Path,
    given: dict,
    kernel: type[AsyncKernelManager],
    folder: Path,
    show: Callable[[str], object],
) -> None:
    """papermill in a thread: this one shows progress and gets the signals, which nbclient would take."""
    with ThreadPoolExecutor(1) as pool:
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
        lines = _Lines(source.with_name(PROGRESS))
        try:
            running = True
            while running:
                running = wait([run], timeout=0.2).not_done
                for line in lines.new():
                    show(line)
        except BaseException:
            logging.disable(logging.CRITICAL)  # that the kernel died is no news
            while wait([run], timeout=0.5).not_done:  # else leaving the pool waits for the notebook to end
                _kill(kernel)
            raise
        finally:
            _kill(kernel)
            for process in (m.provisioner.pid for m in kernel.started if m.provisioner):
                shutil.rmtree(staging_of(folder, process or 0), ignore_errors=True)  # of a kernel that was killed
        run.result()


class _Lines:
    """The lines of progress that a run writes to a file."""

    def __init__(self, file: Path):
        self.file, self.seen = file, 0

    def new(self) -> list[str]:
        try:
            lines = self.file.read_text().splitlines()
        except OSError:  # not there yet
            return []
        new, self.seen = lines[self.seen :], len(lines)
        return new


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
    first = KILLED.get(ename) or (evalue.strip().splitlines() or [""])[0]
    if fault := disk_fault(evalue):
        raise BadInput(fault) from None
    if ename.endswith(OUT_OF_MEMORY) or "can't allocate memory" in evalue:  # torch's own on a CPU
        raise MemoryError(first) from None
    os.replace(output, _failed(folder))
    raise NotebookFailed(f"{ename}: {first} (see {_failed(folder)})") from None


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook as it is committed: nothing of papermill, of the clock or of the machine."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": LANGUAGE | {"version": platform.python_version()},
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


def inputs(notebook: nbformat.NotebookNode, given: dict) -> str:
    """Digest of everything that decides a run's results, but data outside the project."""
    cells = [cell.source for cell in notebook.cells]
    return digest({"cells": cells, "given": given, "code": package().whole_hash(), "versions": library_versions()})


def up_to_date(notebook: nbformat.NotebookNode, given: dict, folder: Path) -> bool:
    """Whether the results at hand are what a run would make. Of data outside the project nobody knows."""
    provenance = folder / "provenance.json"
    own = [literals(cell.source) for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if re.search(r"'(files|hub):", f"{own} {given}") or not provenance.exists():
        return False
    try:
        return read_json(provenance).get("inputs") == inputs(notebook, given)
    except (BadInput, AttributeError):  # whatever that file is, it does not say so
        return False


def read_claims(folder: Path) -> list[dict]:
    """The claims in a folder's metrics.json; none where it has none. Raises BadInput for a file that is not a run's."""
    metrics = folder / "metrics.json"
    content = read_json(metrics) if metrics.exists() else {"claims": []}
    try:
        return [{name: claim[name] for name in CLAIM} for claim in content["claims"]]
    except (KeyError, TypeError):
        raise BadInput(f"{metrics}: not what a run writes; run the notebook again") from None
