"""A page for each claim, from what is committed: the ledger, metrics.json and provenance.json, and registrations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from making.api import as_cell, toctree
from making.links import to
from preflab.claims import measured
from preflab.claims.registration import FOLDER, registered
from preflab.reviewing.explaining import sidecar_of
from preflab.reviewing.ledger import ledger
from preflab.reviewing.rendering import FIRST_PROFILES, Run, runs_of
from preflab.reviewing.results import published

FAMILIES = {
    "S": "Paper S: sequential DPO",
    "D": "Paper D: what DPO and PPO do",
    "M": "Predictions of ours (notebook 09)",
    "B": "Speed (notebook 90)",
}


def judged() -> dict[str, list[Run]]:
    """All that is published of each claim, in the ledger's order: best profile first, and registered runs first."""
    found = runs_of(published(), ledger())

    def first(run: Run) -> tuple[int, bool]:
        return FIRST_PROFILES.index(run.profile), run.claim.power is None

    return {name: sorted(found[name], key=first) for name in ledger().claims}


def page_name(claim: str) -> str:
    return f"claims/{claim}.md"


def claim_page(claim: str, runs: Sequence[Run], root: Path) -> str:
    """Statement, verdicts, rules, registration and a figure."""
    page, first = page_name(claim), runs[0]
    names = list(dict.fromkeys(run.notebook for run in runs))
    parts = [
        f"# {claim} · {as_cell(first.claim.statement.rstrip('.'))}",
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


def verdicts(runs: Sequence[Run], page: str) -> str:
    """A row for each published run."""
    head = "| profile | verdict | measured, 95 % interval | power | run | commit |\n|---|---|---|---|---|---|\n"
    rows = []
    for run in runs:
        name, power = run.result.provenance.name, "—" if run.claim.power is None else f"{run.claim.power:.2f}"
        numbers, origin = (to(f"{run.folder}/{file}.json", page) for file in ("metrics", "provenance"))
        rows.append(
            f"| {run.profile} | **{run.claim.verdict}** | {_number(run)} | {power} "
            f"| [{name}]({numbers}) | [{run.result.provenance.git.commit[:7]}]({origin}) |"
        )
    return head + "\n".join(rows)


def _number(run: Run) -> str:
    return measured(run.claim.value, run.claim.interval)


def figure(claim: str, runs: Sequence[Run], page: str, root: Path) -> str:
    """The picture that the ledger names, of the best run that has published it."""
    shown = ledger().claims[claim].shown
    named = [(run, f"{run.folder}/{shown[run.notebook]}.png") for run in runs if run.notebook in shown]
    pictures = [(run, path) for run, path in named if (root / path).exists()]
    if not pictures:
        return ""
    run, path = pictures[0]
    caption = f"*From {run.result.provenance.name}, profile `{run.profile}`.*"
    words = sidecar_of(root / path).alt or path.split("/")[-1].removesuffix(".png")
    return f"![{as_cell(words)}]({to(path, page)})\n\n{caption}"


def rule(notebook: str, run: Run, page: str, claim: str) -> str:
    """How a notebook decides the claim, and what was registered of it."""
    lines = [f"### In {linked(notebook, page)}", as_cell(run.claim.statistic)]
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
    same = run.result.registration == known.sha256
    told = [
        f"| registered | [{known.date}]({to(f'lib/preflab/claims/registered/{notebook}.yaml', page)}) |",
        f"| for | profile `{known.profile}`, seeds {list(known.seeds)}; tuned on {list(known.tuning_seeds)} |",
        f"| if it is wrong | {as_cell(of['if_wrong'])} |",
        f"| effect that counts | {as_cell(of['effect']['words'])} |",
        f"| power | {powers} |",
        f"| run of profile `{run.profile}` | {'knew this file' if same else 'is older than this file, or knew none'} |",
    ]
    return "\n\n".join([*lines, "| | |\n|---|---|\n" + "\n".join(told)])


def index_page(found: Mapping[str, Sequence[Run]]) -> str:
    """All claims with the verdict of the best run of each."""
    parts = [
        "# Claims",
        "A row has the run that says most. Its page has every run, the rule, and what was registered.",
    ]
    for letter, title in FAMILIES.items():
        rows = [
            [f"[{name}]({name}.md)", as_cell(run.claim.statement), run.claim.verdict, _number(run), run.profile]
            for name, (run, *_) in found.items()
            if name[0] == letter
        ]
        head = "| | claim | verdict | measured | profile |\n|---|---|---|---|---|\n"
        parts += [f"## {title}", head + "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return "\n\n".join([*parts, toctree(list(found))])
