"""What stands in ledger.yaml, the part of CLAIMS.md that nobody can compute.

It says where a paper states a claim and how surely we know that, which figures show it, which limits and questions the
papers have and what looks at them here, and what we chose where a paper is silent. It holds no verdict and no number of
a result: those are read from `figures/`.
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from preflab.errors import BadInput
from preflab.reviewing.results import fault
from preflab.running.reading import read_yaml

FILE = Path(__file__).with_name("ledger.yaml")
Source = Literal["abstract", "digest", "reviewer", "machine", "ours"]
SOURCES: dict[Source, str] = {  # how surely we know that it is the paper's
    "abstract": "the abstract says it",
    "digest": "a digest or a summary of the paper says it; probable, since we have not the full text",
    "reviewer": "a reviewer of the paper says it; these are not the authors' words",
    "machine": "a machine that read the abstract or a summary wrote it; these are not the authors' words",
    "ours": "we infer it or ask it",
}


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Paper(_Entry):
    title: str
    arxiv: str


class Notebook(_Entry):
    rules: str = ""  # the file that holds its rules; none if it judges no claim


class ClaimEntry(_Entry):
    where: str  # in the paper, or in this project
    source: Source
    shown: dict[str, str] = {}  # notebook: the figure that shows it, without .png


class Question(_Entry):
    """A limit, an open question or a next check."""

    paper: Literal["S", "D"]
    kind: Literal["limitation", "open question", "next check"]
    source: Source
    text: str
    state: Literal["looked at", "in part", "open"]  # whether something here looks at it; what came out is a verdict's
    answer: str = ""  # what looks at it
    claims: list[str] = []  # whose verdicts tell what came out
    links: list[str] = []


class Choice(_Entry):
    """What we chose where a paper is silent."""

    paper: Literal["S", "D"]
    silent: str  # what no source says
    choice: str
    notebook: str = ""  # whose committed runs tell the value of
    parameter: str = ""  # by its dotted name
    link: str = ""


class Ledger(_Entry):
    papers: dict[Literal["S", "D"], Paper]
    notebooks: dict[str, Notebook]
    claims: dict[str, ClaimEntry]
    questions: list[Question]
    choices: list[Choice]

    def shown_by(self, notebook: str, figure: str) -> list[str]:
        """The claims that a figure of a notebook stands for."""
        return [name for name, claim in self.claims.items() if claim.shown.get(notebook) == figure]


@cache
def ledger() -> Ledger:
    """What is written by hand. Raises BadInput if the file is not as it should be."""
    return checked(read_yaml(FILE))


def checked(content: dict[str, Any]) -> Ledger:
    """The content of a ledger.yaml. Raises BadInput that names the entry."""
    try:
        entries = Ledger.model_validate(content)
    except ValidationError as error:
        raise BadInput(f"{FILE.name}: {fault(error)}") from None
    for question in entries.questions:
        for name in question.claims:
            if name not in entries.claims:
                raise BadInput(f"{FILE.name}: claims={name} of {question.text!r}: no such claim")
    return entries
