"""From a figure to where it comes from: its cell, its claims, its run, and whether its registration still stands."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from preflab.claims import measured
from preflab.claims.registration import FOLDER
from preflab.errors import BadInput, shown
from preflab.files import sha256
from preflab.paths import project_root
from preflab.reviewing.ledger import ledger
from preflab.reviewing.rendering import notebook_of
from preflab.reviewing.results import Result, Sidecar, by_dotted_name, hash_at, read_result, read_written
from preflab.running.reading import read_notebook, resolve
from preflab.running.records import jsonable

SEEDS = ("seeds", "draws")  # parameters that hold seeds; draws are those of worlds
TOLD = ("profile", "name", *SEEDS)  # parameters that have a line of their own, or the figure's path tells
WIDTH, LINE = 13, 105  # of the first column, and of what stands beside it where it is a list


@dataclass(frozen=True)
class Cell:
    number: int  # from 1, as a reader counts
    section: str


def sidecar_of(figure: Path) -> Sidecar:
    """The JSON beside a figure, from the path of either. Raises BadInput."""
    if figure.suffix not in (".png", ".json"):
        raise BadInput(f"{figure}: expected a figure (.png), or the .json beside it")
    return read_written(Sidecar, figure.with_suffix(".json"), "the .json beside a figure of results/ or figures/")


def explain(figure: Path) -> Iterator[str]:
    """Lines that tell where a figure comes from. Raises BadInput for a path that is no figure of a run."""
    sidecar, result = sidecar_of(figure), read_result(figure.parent)
    name, notebook = figure.stem, notebook_of(sidecar.name, ledger())
    told: dict[str, list[str]] = {
        "figure": [f"{figure.with_suffix('.png')} ({_picture(figure.with_suffix('.png'), sidecar)})"],
        "drawn in": [_drawn_in(notebook, name)],
        "claims": list(_claims(notebook, name, result)),
        "command": [sidecar.command or "none: it was run in JupyterLab or by papermill"],
        "commit": [_commit(sidecar)],
        "profile": [sidecar.profile],
        **{key: [str(sidecar.parameters[key])] for key in SEEDS if key in sidecar.parameters},
        "parameters": _changed(notebook, sidecar),
        "data": [f"{of}: {fingerprint[:12]}" for of, fingerprint in sidecar.fingerprints.items()]
        or ["no fingerprints recorded"],
        "registration": [_registration(notebook, result)],
    }
    for title, lines in told.items():
        yield from (f"{title if i == 0 else '':<{WIDTH}} {line}" for i, line in enumerate(lines))


def _picture(picture: Path, sidecar: Sidecar) -> str:
    if not picture.is_file():
        return "the picture is not there"
    return "as the run drew it" if sha256(picture) == sidecar.sha256 else "NOT what the run drew: its hash is another"


def _drawn_in(notebook: str, figure: str) -> str:
    cell = cell_of(read_notebook(project_root() / "notebooks" / f"{notebook}.ipynb").cells, figure)
    there = f'cell {cell.number}, section "{cell.section}"' if cell else "no cell of today draws it"
    return f"notebooks/{notebook}.ipynb, {there}"


def cell_of(cells: list[Mapping[str, Any]], figure: str) -> Cell | None:
    """The cell of a notebook that draws a figure, and the heading that it stands under; None if none draws it."""
    section = ""
    for number, cell in enumerate(cells, 1):
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^#+ (.+)$", cell["source"], re.M)
            section = headings[-1] if headings else section
        elif re.search(rf'run\.figure\(\s*"{re.escape(figure)}"', cell["source"]):
            return Cell(number, section)
    return None


def _claims(notebook: str, figure: str, result: Result) -> Iterator[str]:
    names = [name for name in ledger().shown_by(notebook, figure) if name in result.claims]
    for claim in map(result.claims.get, names):
        yield f"{claim.id}: {claim.statement} {measured(claim.value, claim.interval)}: {claim.verdict}"
        yield f"    rule: {claim.statistic}"
    rules = ledger().notebooks[notebook].rules
    if names:
        yield f"rules are in {rules}"
    elif rules:
        yield f"none is decided by it; rules of its notebook are in {rules}"
    else:
        yield "none is decided by it; its notebook judges none"


def _commit(sidecar: Sidecar) -> str:
    state = {True: "with changes that are not committed", False: "clean", None: "not known to be clean"}
    return f"{sidecar.git.commit or 'none recorded'} ({state[sidecar.git.dirty]})"


def _changed(notebook: str, sidecar: Sidecar) -> list[str]:
    """What a run had otherwise than the notebook has by itself today. Names that only one of them knows stand apart."""
    source = project_root() / "notebooks" / "src" / f"{notebook}.py"
    own = {name: jsonable(value) for name, value in resolve(source, {}, str(source)).values().items()}
    ran = by_dotted_name(sidecar.parameters, whole=own)
    names = [name for name in ran if name in own and ran[name] != own[name] and name not in TOLD]
    told = [f"{name}: {_against(ran[name], own[name])}" for name in names]
    old = [f"{name}={shown(value)}" for name, value in ran.items() if name not in own]
    new = [name for name in own if name not in ran]
    told += [f"no parameters today: {', '.join(old)}"] if old else []
    told += [f"not known to that run: {', '.join(new)}"] if new else []
    return [line for text in told for line in wrap(text, LINE)] or ["all are the notebook's own"]


def _against(ran: Any, own: Any) -> str:
    """A value beside the notebook's own; of rows by name, which ones differ."""
    if not (isinstance(ran, dict) and isinstance(own, dict)):
        return f"{shown(ran)}, the notebook's own is {shown(own)}"
    groups = {
        "rows that the notebook lacks": [name for name in ran if name not in own],
        "rows of the notebook that the run lacks": [name for name in own if name not in ran],
        "other rows of the same name": [name for name in ran if name in own and ran[name] != own[name]],
    }
    return "; ".join(f"{title}: {', '.join(map(repr, rows))}" for title, rows in groups.items() if rows)


def _registration(notebook: str, result: Result) -> str:
    """Which one the run has read, whether it is the committed one, and whether it was there when the run began."""
    recorded, file = result.registration, FOLDER / f"{notebook}.yaml"
    path = f"lib/preflab/claims/registered/{file.name}"
    if recorded is None:
        return f"the run has read none{f'; today there is {path}' if file.is_file() else ''}"
    if not file.is_file():
        return f"{recorded[:12]}, and {path} is not there today"
    today = hash_at("HEAD", path) or sha256(file)  # without git, the file that is there
    before = hash_at(str(result.provenance.git.commit), path)
    then = "it was in the commit of the run" if before == recorded else "it was NOT in the commit of the run"
    state = "still the committed one" if today == recorded else "NOT the committed one"
    return f"{recorded[:12]}, {path}: {state}; {then if before else 'the commit of the run has none, or is not here'}"
