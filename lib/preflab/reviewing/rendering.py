"""CLAIMS.md, made of what is committed: figures/, registrations, RESULTS.md, params/paper and ledger.yaml."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from preflab.claims import measured
from preflab.claims.registration import FOLDER, Registration, registered
from preflab.errors import BadInput
from preflab.paths import project_root
from preflab.reviewing.history import SECTION, Change, changes
from preflab.reviewing.ledger import SOURCES, Choice, ClaimEntry, Ledger, Question, ledger
from preflab.reviewing.paper_values import chosen_values
from preflab.reviewing.results import Judged, Result, published

CLAIMS = "CLAIMS.md"  # at the top of the checkout
FIRST_PROFILES = ("full", "real", "gpu", "files", "default")  # those that tell most stand first
PAPERS = {"S": "Paper S", "D": "Paper D"}
STATES = {"looked at": "Looked at", "in part": "In part", "open": "Open"}
NOTHING = "—"
ABOUT = """\
# Claims

`preflab ledger` writes this file. Do not edit it: a test compares it with what is written anew.
[REVIEWING.md](REVIEWING.md) shows how to follow a claim to its figure, its code and its run.
[RESULTS.md](RESULTS.md) says in words what came out.

- Verdicts, numbers and commits are those of `metrics.json` and `provenance.json` in `figures/PROFILE/NAME`. Brackets
  hold 95 % intervals, or what the rule says.
- Only a registered run has a power. It is the smaller of two: to reproduce the effect that counts, and to reject what
  speaks against it. If a claim has a registration, any other run shows something and decides nothing.
- "As committed" means that the run has read the very registration that is linked; "an older one" means another version.
- We have not the full text of either paper. So each claim and question says how surely we know that it is the paper's:
"""


@dataclass(frozen=True)
class Run:
    """A claim in one committed result."""

    claim: Judged
    result: Result
    notebook: str

    @property
    def profile(self) -> str:
        return self.result.provenance.profile

    @property
    def folder(self) -> str:
        return f"figures/{self.profile}/{self.result.provenance.name}"


def written() -> str:
    """The text of CLAIMS.md. Raises BadInput if ledger and committed results disagree on which claims there are."""
    entries, runs = ledger(), runs_of(published(), ledger())
    if wrong := mismatches(entries, runs):
        raise BadInput(f"ledger.yaml: {wrong[0]}")
    before = changes((project_root() / "RESULTS.md").read_text(encoding="utf-8"))
    sources = "".join(f"  - *{name}*: {words}\n" for name, words in SOURCES.items())
    parts = [ABOUT + sources, *_glance(entries, runs)]
    for letter, title in {**PAPERS, "": "Predictions and benchmarks of ours"}.items():
        parts.append(f"## {title}\n{_paper(entries, letter)}")
        names = [name for name in entries.claims if (name[0] if name[0] in PAPERS else "") == letter]
        parts += [_claim(name, entries, runs[name], before.get(name, [])) for name in names]
    parts += [*_questions(entries, runs), *_choices(entries, runs), *_paper_values()]
    return "\n".join(parts)


def runs_of(results: Iterable[Result], entries: Ledger) -> dict[str, list[Run]]:
    """By claim: its committed runs, notebook by notebook, those that tell most first."""
    found: dict[str, list[Run]] = {}
    for result in results:
        for claim in result.claims.values():
            found.setdefault(claim.id, []).append(Run(claim, result, notebook_of(result.provenance.name, entries)))
    for runs in found.values():
        runs.sort(key=lambda run: (run.notebook, _rank(run.profile), run.folder))
    return found


def notebook_of(name: str, entries: Ledger) -> str:
    """The notebook of a run by its name. Raises BadInput."""
    fitting = [notebook for notebook in entries.notebooks if name.startswith(notebook)]
    if not fitting:
        raise BadInput(f"ledger.yaml: no notebook for the run {name}, expected one whose name begins its name")
    return max(fitting, key=len)


def mismatches(entries: Ledger, runs: dict[str, list[Run]]) -> list[str]:
    """What only one of ledger and results knows."""
    unknown = [f"no claim {name}, which {runs[name][0].folder} has" for name in runs if name not in entries.claims]
    return unknown + [f"claim {name}: no committed result has it" for name in entries.claims if name not in runs]


def _rank(profile: str) -> tuple[int, str]:
    known = FIRST_PROFILES.index(profile) if profile in FIRST_PROFILES else len(FIRST_PROFILES)
    return known, profile


# --- pieces of Markdown ---------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells) + "\n"


def _link(path: str, words: str = "") -> str:
    return f"[{words or path.rpartition('/')[2]}]({path})"


def _figure(run: Run, entry: ClaimEntry) -> str:
    path = f"{run.folder}/{entry.shown.get(run.notebook)}.png"
    return _link(path) if (project_root() / path).exists() else NOTHING


# --- claims ---------------------------------------------------------------------------------------


def _glance(entries: Ledger, runs: dict[str, list[Run]]) -> list[str]:
    profiles = sorted({run.profile for some in runs.values() for run in some}, key=_rank)
    rows = []
    for name in entries.claims:
        by_profile = {p: [run for run in runs[name] if run.profile == p] for p in profiles}
        told = ["; ".join(f"{run.notebook[:2]}: {run.claim.verdict}" for run in some) for some in by_profile.values()]
        rows.append([name, runs[name][0].claim.statement, *(cell or NOTHING for cell in told)])
    intro = "A number before a verdict is the notebook's. A dash means that the profile has not judged the claim.\n"
    return [f"## Verdicts by profile\n\n{intro}\n" + _table(["", "claim", *profiles], rows)]


def _paper(entries: Ledger, letter: str) -> str:
    if letter not in entries.papers:
        return ""
    paper = entries.papers[letter]
    return f"\n*{paper.title}*, [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}).\n"


def _claim(name: str, entries: Ledger, runs: Sequence[Run], before: Sequence[Change]) -> str:
    entry = entries.claims[name]
    rules = list(dict.fromkeys((run.notebook, run.claim.statistic) for run in runs))
    letters = {rule: chr(ord("a") + i) for i, rule in enumerate(rules)}
    lines = [f"### {name} · {runs[0].claim.statement}", "", f"- Stated in: {entry.where} (*{entry.source}*)."]
    lines += _registrations(name, list(dict.fromkeys(run.notebook for run in runs)))
    for rule, letter in letters.items():
        source = _link(entries.notebooks[rule[0]].rules)
        lines.append(f"- Rule {letter}, of {_link(f'notebooks/{rule[0]}.ipynb', rule[0])} in {source}: {rule[1]}")
    rows = [_row(name, run, entry, letters[run.notebook, run.claim.statistic]) for run in runs]
    head = ["run", "rule", "verdict", "measured", "power", "registration", "figure", "commit"]
    lines += ["", _table(head, rows).rstrip()]
    return "\n".join([*lines, *_before(before), ""])


def _registration_of(name: str, notebook: str) -> Registration | None:
    """That of a notebook, if it has one that covers the claim."""
    there = (FOLDER / f"{notebook}.yaml").exists()
    return found if there and name in (found := registered(notebook)).claims else None


def _registrations(name: str, notebooks: Sequence[str]) -> list[str]:
    found = {notebook: _registration_of(name, notebook) for notebook in notebooks}
    without = [notebook for notebook, registration in found.items() if registration is None]
    lines = [f"- Without a registration: {', '.join(without)}."] if without else []
    return lines + [_registration(name, notebook, of) for notebook, of in found.items() if of]


def _registration(name: str, notebook: str, found: Registration) -> str:
    path = (FOLDER / f"{notebook}.yaml").relative_to(project_root()).as_posix()
    of = found.claims[name]
    powers = ", ".join(f"{verdict} {power:.2f}" for verdict, power in of["power"].items())
    return (
        f"- Registered: {_link(path)}, {found.date}, profile `{found.profile}`, "
        f"seeds {', '.join(map(str, found.seeds))}. "
        f"If the claim is wrong: {of['if_wrong']}. What counts: {of['effect']['words']}. Power: {powers}."
    )


def _row(name: str, run: Run, entry: ClaimEntry, letter: str) -> list[str]:
    claim, result = run.claim, run.result
    power = NOTHING if claim.power is None else f"{claim.power:.2f}"
    commit = f"`{(result.provenance.git.commit or NOTHING)[:10]}`"
    where = _link(f"{run.folder}/metrics.json", f"{run.profile}/{result.provenance.name}")
    number = measured(claim.value, claim.interval)
    state = _registration_state(name, run)
    return [where, letter, claim.verdict, number, power, state, _figure(run, entry), commit]


def _registration_state(name: str, run: Run) -> str:
    found = _registration_of(name, run.notebook)
    if found is None:
        return "none"
    if run.result.registration is None:
        return "not recorded"
    return "as committed" if run.result.registration == found.sha256 else "an older one"


def _before(before: Sequence[Change]) -> list[str]:
    if not before:
        return []
    rows = [[change.before, change.after, change.why] for change in before]
    return [
        "",
        f"Before, as {_link('RESULTS.md')} tells it (*{SECTION}*):",
        "",
        _table(["was", "became", "why"], rows).rstrip(),
    ]


# --- questions and choices ------------------------------------------------------------------------


def _questions(entries: Ledger, runs: dict[str, list[Run]]) -> list[str]:
    intro = (
        "Each says how surely it is the paper's, and what looks at it here. *Looked at* means that something here\n"
        "measures it; what came out is in the verdicts and figures beside it. *Open* means that nothing here does.\n"
    )
    parts = [f"## Limits, open questions and next checks of the papers\n\n{intro}"]
    for paper, title in PAPERS.items():
        for kind in dict.fromkeys(question.kind for question in entries.questions if question.paper == paper):
            asked = [q for q in entries.questions if (q.paper, q.kind) == (paper, kind)]
            parts.append(f"### {title}: {kind}s\n")
            parts.append("\n".join(_question(question, runs) for question in asked) + "\n")
    return parts


def _question(question: Question, runs: dict[str, list[Run]]) -> str:
    told = [f"{name}: {_shortly(runs[name])}" for name in question.claims]
    links = ", ".join(_link(path, "/".join(path.split("/")[-2:])) for path in question.links)
    pieces = [f"- {question.text} (*{question.source}*)", f"  **{STATES[question.state]}.** {question.answer}".rstrip()]
    pieces += [f"  Verdicts: {'; '.join(told)}."] if told else []
    pieces += [f"  See {links}."] if links else []
    return "\n".join(pieces)


def _shortly(runs: Sequence[Run]) -> str:
    """The verdict of each notebook's run that tells most."""
    first = {run.notebook: run for run in reversed(runs)}.values()
    return ", ".join(f"{run.claim.verdict} ({run.notebook[:2]}, {run.profile})" for run in reversed(first))


def _choices(entries: Ledger, runs: dict[str, list[Run]]) -> list[str]:
    intro = (
        "A paper is silent here, as far as we know it. Values are those of the committed runs of a notebook, by\n"
        "profile; a value without a profile is that of all that record it.\n"
    )
    parts = [f"## What we chose\n\n{intro}"]
    results = {run.folder: (run.notebook, run.result) for some in runs.values() for run in some}
    for paper, title in PAPERS.items():
        rows = [
            [c.silent, c.choice, _values(c, list(results.values())), _link(c.link) if c.link else NOTHING]
            for c in entries.choices
            if c.paper == paper
        ]
        parts.append(f"### {title}\n\n" + _table(["no source says", "our choice", "value", "where"], rows))
    return parts


def _values(choice: Choice, results: Sequence[tuple[str, Result]]) -> str:
    """The value of a parameter in each committed run of its notebook."""
    found = {
        result.provenance.profile: value
        for notebook, result in results
        if notebook == choice.notebook and (value := _parameter(result, choice.parameter)) is not None
    }
    if len(set(found.values())) == 1:
        found = {"": next(iter(found.values()))}
    return ", ".join(f"`{choice.parameter}: {v}`" + (f" ({p})" if p else "") for p, v in found.items()) or NOTHING


def _parameter(result: Result, name: str) -> str | None:
    """A parameter by its dotted name, as text; of a mapping its names; None if the run did not have it."""
    value = result.provenance.parameters
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return ", ".join(value) if isinstance(value, dict) else str(value)


def _paper_values() -> list[str]:
    intro = (
        "These values of `params/paper` are marked as ours. Other values there have their source beside\n"
        "them, or decide no number. That profile was not run.\n"
    )
    rows = [
        [
            f"`{of.parameter}: {of.value}`",
            of.why or NOTHING,
            ", ".join(_link(f"params/paper/{f}.yaml", f) for f in files),
        ]
        for of, files in chosen_values().items()
    ]
    return [f"### The profile paper\n\n{intro}\n" + _table(["value", "why", "files"], rows)]
