"""The oracle of `answers`: it reads the attributes of any word sequence as a response to a prompt.

The oracle also reads the broken text of a model. What it cannot read counts as a fault.
"""

import itertools
from dataclasses import astuple, dataclass, fields

import numpy as np

from preflab.data.worlds.answers.grammar import (
    CLOSINGS,
    FILLERS,
    OPENINGS,
    REFUSAL,
    STEP_OF,
    STEPS,
    TOOL_OF,
    TOOLS,
    WARNING,
    Prompt,
)

ORDER = ("opening", "warning", "refusal", "answer", "step", "filler", "closing")  # of sentences in a response


@dataclass(frozen=True)
class Attributes:
    """The attributes of one response. All are whole numbers."""

    correct: int  # +1 the right tool, -1 a wrong one, 0 no tool
    complete: int  # 1 if the right second step follows the tool, otherwise 0
    refusal: int  # 0 or 1
    warning: int  # 0 or 1
    polite: int  # opening and closing: 0, 1 or 2
    verbosity: int  # filler sentences: 0 to 3
    faults: int  # sentences unreadable, repeated or out of place; contradictions; neither an answer nor a refusal

    @property
    def solved(self) -> bool:
        """Whether it names the right tool and no wrong one."""
        return self.correct == 1

    def vector(self) -> np.ndarray:
        """The attributes in the order of `ATTRIBUTES`: floats (7,)."""
        return np.array(astuple(self), dtype=float)


ATTRIBUTES = tuple(f.name for f in fields(Attributes))


def read(prompt: Prompt, response: str) -> Attributes:
    """The attributes of any word sequence as a response to the prompt. Never raises."""
    *sentences, rest = [part.split() for part in response.split(".")]
    parsed = [(_kind(words), tuple(words)) for words in sentences]
    kinds = [kind for kind, _ in parsed]
    tools = [words[2] for kind, words in parsed if kind == "answer"]
    # A second step counts only if it directly follows a tool.
    steps = [
        words[1] for (before, _), (kind, words) in itertools.pairwise(parsed) if kind == "step" and before == "answer"
    ]
    ranks = [ORDER.index(kind) for kind in kinds if kind]
    faults = (
        kinds.count("")
        + bool(rest)  # words after the last full stop
        + (len(parsed) - len(set(parsed)))  # repeated sentences
        + sum(max(kinds.count(k) - 1, 0) for k in ("opening", "answer", "step", "closing"))
        + sum(later < earlier for earlier, later in itertools.pairwise(ranks))
        + ("refusal" in kinds and "answer" in kinds)  # refuses and answers
        + (kinds.count("step") - len(steps))  # "then ..." after no tool
        + (not {"refusal", "answer"} & set(kinds))  # neither answers nor refuses
    )
    right = [tool == TOOL_OF[prompt.object] for tool in tools]
    return Attributes(
        correct=(1 if all(right) else -1) if right else 0,
        complete=int(STEP_OF[prompt.action] in steps),
        refusal=int("refusal" in kinds),
        warning=int("warning" in kinds),
        polite=int("opening" in kinds) + int("closing" in kinds),
        verbosity=len({words for kind, words in parsed if kind == "filler"}),
        faults=int(faults),
    )


def _kind(words: list[str]) -> str:
    """The kind of sentence that the words are, a member of `ORDER`; "" if they are no sentence of the grammar."""
    sentence = " ".join(words)
    if sentence in OPENINGS:
        return "opening"
    if sentence in CLOSINGS:
        return "closing"
    if sentence in FILLERS:
        return "filler"
    if sentence == WARNING:
        return "warning"
    if sentence == REFUSAL:
        return "refusal"
    if words[:2] == ["use", "the"] and len(words) == 3 and words[2] in TOOLS:
        return "answer"
    if words[:1] == ["then"] and len(words) == 3 and words[1] in STEPS and words[2] == "it":
        return "step"
    return ""
