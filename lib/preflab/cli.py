"""The command `preflab`: run notebooks with a profile's parameters, collect what they found."""

import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import jupytext
import nbformat
import typer
from typer.core import TyperGroup

from preflab import notebooks, paths
from preflab.errors import BadInput
from preflab.parameters import Parameters, parse_yaml, read_yaml, resolve

EXIT_BAD_INPUT, EXIT_FAILED, EXIT_TERMINATED = 2, 1, 128 + signal.SIGTERM


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
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        raise typer.Exit(code)


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Profile = Annotated[str, typer.Option(help="A folder of params/.")]


@app.callback()
def _start() -> None:
    """What preference optimisation does to a language model: run the notebooks, collect the results."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # cleans up, as Ctrl-C does


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A file of params/PROFILE/, without .yaml.")],
    profile: Profile = "default",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="key=value over the file's; repeatable.")
    ] = None,
) -> None:
    """Execute one notebook with params/PROFILE/NAME.yaml."""
    folder = _run(name, profile, parameter or [])
    _print_claims([folder])


@app.command()
def reproduce(profile: Profile = "default") -> None:
    """Execute a profile's notebooks that are not up to date.

    Prints the verdicts on all claims.
    """
    _print_claims([_run(name, profile, [], only_if_needed=True) for name in notebooks.find_parameters(profile)])


@app.command()
def check(parameters: Annotated[Path, typer.Argument(help="A YAML file named after its notebook.")]) -> None:
    """Check a file of parameters without running anything."""
    resolve(notebooks.find_notebook(parameters.stem), read_yaml(parameters), str(parameters))
    typer.echo(f"{parameters}: ok")


@app.command()
def pairs(
    source: Annotated[str, typer.Argument(help="world:NAME, hub:REPO or files:PATH.")],
    objective: Annotated[str | None, typer.Option(help="One objective; all of them if not given.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub source.")] = None,
) -> None:
    """Read a preference source and report what was kept and lost."""
    from preflab.pairs import load_pairs, objectives_of  # imports datasets

    wanted = [objective] if objective else objectives_of(source, revision)
    reports = [load_pairs(source, name, revision=revision).report for name in wanted]
    typer.echo("\n\n".join(map(str, reports)))


@app.command()
def publish(profile: Profile = "full") -> None:
    """Copy a profile's figures and numbers to figures/."""
    root, names = paths.project_root(), notebooks.find_parameters(profile)
    for name in names:
        metrics = paths.results_root() / profile / name / "metrics.json"
        if not metrics.exists():
            hint = f"run: preflab run {name} --profile {profile}"
            raise BadInput(f"{metrics}: no such file, expected the results of {name}; {hint}")
    for name in names:
        source, target = paths.results_root() / profile / name, root / "figures" / profile / name
        shutil.rmtree(target, ignore_errors=True)  # figures that are no longer drawn go
        target.mkdir(parents=True)
        for file in sorted([*source.glob("*.png"), *source.glob("*.json")]):
            shutil.copyfile(file, target / file.name)
        typer.echo(target)


@app.command()
def render(name: Annotated[str, typer.Argument(help="A file of notebooks/src/, without .py.")]) -> None:
    """Execute notebooks/src/NAME.py into notebooks/NAME.ipynb."""
    source = notebooks.find_notebook(name, "notebooks/src", "py")
    parameters = resolve(source, {}, str(source))
    notebook = _execute(jupytext.read(source), {}, parameters, f"preflab render {name}")
    target = paths.project_root() / "notebooks" / f"{source.stem}.ipynb"
    staged = notebooks.results_folder(parameters) / "rendered.ipynb"
    nbformat.write(notebooks.clean(notebook), staged)
    os.replace(staged, target)
    typer.echo(target)


@app.command()
def clean_cache() -> None:
    """Delete the cache of trained stages.

    It costs nothing but the time to train them again.
    """
    from preflab.runs import cache  # imports torch

    cache().clear()


def _run(name: str, profile: str, overrides: list[str], only_if_needed: bool = False) -> Path:
    """Check everything, execute, return the folder of the results."""
    files = notebooks.find_parameters(profile)
    if name not in files:
        raise BadInput(f"params/{profile}/{name}.yaml: no such file, expected one of: {', '.join(files)}")
    notebook = notebooks.find_notebook(name)
    given = {"profile": profile, "name": name, **read_yaml(files[name])}
    parameters = resolve(notebook, given, str(files[name]))
    if overrides:
        given |= _parse(overrides)
        parameters = resolve(notebook, given, "-p")
    words = [f for override in overrides for f in ("-p", override)]
    command = shlex.join(["preflab", "run", name, "--profile", profile, *words])
    cells = nbformat.read(notebook, as_version=4)
    if only_if_needed and notebooks.up_to_date(cells, parameters):
        typer.echo(f"{name}  up to date", err=True)
    else:
        _execute(cells, given, parameters, command)
    return notebooks.results_folder(parameters)


def _parse(overrides: list[str]) -> dict[str, Any]:
    """key=value, the value as YAML reads it: what a file cannot say, the command line cannot either."""
    given = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise BadInput(f"-p {override}: expected key=value")
        if key in given:
            raise BadInput(f"-p {override}: {key} is given twice, expected once")
        given[key] = parse_yaml(value, f"-p {override}")
    return given


def _execute(
    notebook: nbformat.NotebookNode, given: dict, parameters: Parameters, command: str
) -> nbformat.NotebookNode:
    def show(line: str) -> None:
        typer.echo(f"{parameters.name}  {line}", err=True)

    return notebooks.execute(notebook, given, parameters, command, show)


def _print_claims(folders: list[Path]) -> None:
    for folder in folders:
        typer.echo(folder)
        for claim in notebooks.read_claims(folder):
            typer.echo(f"  {claim['id']:<5}{claim['verdict']:<16}{_number(claim):<28}{claim['statement']}")


def _number(claim: dict) -> str:
    shown = "-" if claim["value"] is None else f"{claim['value']:.3g}"
    if claim["interval"] and None not in claim["interval"]:
        shown += " [{:.3g}, {:.3g}]".format(*claim["interval"])
    return shown


if __name__ == "__main__":
    app()
