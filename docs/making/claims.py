"""A page for each claim, from what is committed: metrics.json and provenance.json in figures/, and registrations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from making.api import as_cell, toctree
from making.links import to
from preflab.claims import measured
from preflab.claims.registration import FOLDER, registered

PROFILES = ("full", "gpu", "real", "files", "default")  # as far as verdicts go: the first one that there is comes first
FAMILIES = {
    "S": "Paper S: sequential DPO",
    "D": "Paper D: what DPO and PPO do",
    "M": "Predictions of ours (notebook 09)",
    "B": "Speed (notebook 90)",
}
FIGURES = {  # the picture of each claim, by notebook where several notebooks ask for it
    "S1": ("outcome_map", "map"),
    "S2": ("outcome_map", "slopes", "forecasts"),
    "S3": ("outcome_map", "map", "orders"),
    "S4": ("change_distributions",),
    "S5": ("quartiles",),
    "S6": ("margin_paths", "slopes"),
    "S7": ("cosines",),
    "S8": ("opposition",),
    **dict.fromkeys(("D1", "D2", "D3", "D5"), ("six_panels",)),
    **dict.fromkeys(("D4", "D6"), ("weights",)),
    "D7": ("forest",),
    "D8": ("gap",),
    "D9": ("g",),
    **dict.fromkeys(("D10", "D11", "D12"), ("forest",)),
    **dict.fromkeys(("M1", "M2", "M3", "M4", "M5", "M6"), ("end",)),
}


@dataclass(frozen=True)
class Judged:
    """What one published run says of one claim."""

    folder: str  # figures/PROFILE/RUN
    notebook: str
    claim: Mapping[str, Any]  # as metrics.json has it
    commit: str
    registration: str | None  # hash of the registration that the run knew

    @property
    def profile(self) -> str:
        return self.folder.split("/")[1]

    @property
    def number(self) -> str:
        return measured(self.claim["value"], self.claim["interval"])

    @property
    def power(self) -> str:
        power = self.claim.get("power")
        return "—" if power is None else f"{power:.2f}"


def judged(root: Path) -> dict[str, list[Judged]]:
    """All that is published of each claim, best profile first, in the order of the papers."""
    notebooks = sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))
    found: dict[str, list[Judged]] = {}
    for path in sorted((root / "figures").glob("*/*/metrics.json"), key=lambda p: (PROFILES.index(p.parts[-3]), p)):
        content, provenance = json.loads(path.read_text()), json.loads((path.parent / "provenance.json").read_text())
        (notebook,) = (name for name in notebooks if path.parent.name.startswith(name))
        folder, known = path.parent.relative_to(root).as_posix(), content["metrics"].get("registration")
        for claim in content["claims"]:
            run = Judged(folder, notebook, claim, provenance["git"]["commit"], known)
            found.setdefault(claim["id"], []).append(run)
    return dict(sorted(found.items(), key=lambda item: ("SDMB".index(item[0][0]), int(item[0][1:]))))


def page_name(claim: str) -> str:
    return f"claims/{claim}.md"


def claim_page(claim: str, runs: Sequence[Judged], root: Path) -> str:
    """Statement, verdicts, rules, registration and a figure."""
    page, first = page_name(claim), runs[0]
    names = list(dict.fromkeys(run.notebook for run in runs))
    parts = [
        f"# {claim} · {as_cell(first.claim['statement'].rstrip('.'))}",
        f"{FAMILIES[claim[0]]}. Asked in {', '.join(linked(name, page) for name in names)}.",
        "## Verdicts",
        verdicts(runs, page),
        "A verdict of the profile `full` is the one that counts. Others show what there is to see, and decide nothing. "
        f"[Results]({to('RESULTS.md', page)}) says in words what was measured, and what it is worth.",
        figure(claim, runs, page, root),
        "## The rule",
        *[rule(name, next(run for run in runs if run.notebook == name), page, claim) for name in names],
    ]
    return "\n\n".join(part for part in parts if part)


def linked(notebook: str, page: str) -> str:
    """A notebook's name as a link."""
    return f"[{notebook}]({to(f'notebooks/{notebook}.ipynb', page)})"


def verdicts(runs: Sequence[Judged], page: str) -> str:
    """A row for each published run."""
    head = "| profile | verdict | measured, 95 % interval | power | run | commit |\n|---|---|---|---|---|---|\n"
    rows = []
    for run in runs:
        name = run.folder.split("/")[-1]
        numbers, origin = (to(f"{run.folder}/{file}.json", page) for file in ("metrics", "provenance"))
        rows.append(
            f"| {run.profile} | **{run.claim['verdict']}** | {run.number} | {run.power} "
            f"| [{name}]({numbers}) | [{run.commit[:7]}]({origin}) |"
        )
    return head + "\n".join(rows)


def figure(claim: str, runs: Sequence[Judged], page: str, root: Path) -> str:
    """The first picture of the claim that the best run has published."""
    pictures = [
        (run, f"{run.folder}/{name}.png")
        for run in runs
        for name in FIGURES.get(claim, ())
        if (root / run.folder / f"{name}.png").exists()
    ]
    if not pictures:
        return ""
    run, path = pictures[0]
    caption = f"*From {run.folder.split('/')[-1]}, profile `{run.profile}`.*"
    return f"![{path.split('/')[-1].removesuffix('.png')}]({to(path, page)})\n\n{caption}"


def rule(notebook: str, run: Judged, page: str, claim: str) -> str:
    """How a notebook decides the claim, and what was registered of it."""
    lines = [f"### In {linked(notebook, page)}", as_cell(run.claim["statistic"])]
    path = FOLDER / f"{notebook}.yaml"
    if not path.exists():
        return "\n\n".join(
            [*lines, "There is no registration. The rule stands in the code, and nobody has simulated its power."]
        )
    known = registered(notebook)
    if claim not in known.claims:
        return "\n\n".join([*lines, "The registration of this notebook does not name this claim."])
    of = known.claims[claim]
    powers = ", ".join(f"{verdict} {power:.2f}" for verdict, power in of["power"].items())
    same = run.registration == known.sha256
    told = [
        f"| registered | [{known.date}]({to(f'lib/preflab/claims/registered/{notebook}.yaml', page)}) |",
        f"| for | profile `{known.profile}`, seeds {list(known.seeds)}; tuned on {list(known.tuning_seeds)} |",
        f"| if it is wrong | {as_cell(of['if_wrong'])} |",
        f"| effect that counts | {as_cell(of['effect']['words'])} |",
        f"| power | {powers} |",
        f"| run of profile `{run.profile}` | {'knew this file' if same else 'is older than this file, or knew none'} |",
    ]
    return "\n\n".join([*lines, "| | |\n|---|---|\n" + "\n".join(told)])


def index_page(found: Mapping[str, Sequence[Judged]]) -> str:
    """All claims with the verdict of the best run of each."""
    parts = [
        "# Claims",
        "A row has the run that says most. Its page has every run, the rule, and what was registered.",
    ]
    for letter, title in FAMILIES.items():
        rows = [
            [f"[{name}]({name}.md)", as_cell(run.claim["statement"]), run.claim["verdict"], run.number, run.profile]
            for name, (run, *_) in found.items()
            if name[0] == letter
        ]
        head = "| | claim | verdict | measured | profile |\n|---|---|---|---|---|\n"
        parts += [f"## {title}", head + "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return "\n\n".join([*parts, toctree(list(found))])
