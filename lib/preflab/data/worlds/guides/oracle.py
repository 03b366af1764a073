"""The oracle of `guides`: it reads the attributes of any word sequence as a response to a prompt.

The oracle also reads the broken text of a model. What it cannot read counts as a fault.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

from preflab.data.worlds.guides.grammar import Prompt
from preflab.data.worlds.guides.words import (
    ADVERB_OF,
    ADVERBS,
    CLOSINGS,
    DETAILS,
    HELPERS,
    OPENINGS,
    ORDINALS,
    PARTS,
    PARTS_OF,
    PROCEDURE_OF,
    SPOT_OF,
    SPOTS,
    TOOL_OF,
    TOOLS,
    VERBS,
)

ORDER = ("opening", "warning", "refusal", "referral", "spot", "step", "detail", "closing")  # of sentences
ONCE = ("opening", "warning", "refusal", "referral", "spot", "closing")
FIXED = {
    **dict.fromkeys(OPENINGS, "opening"),
    **dict.fromkeys(CLOSINGS, "closing"),
    **dict.fromkeys(DETAILS, "detail"),
}


@dataclass(frozen=True)
class Attributes:
    """The attributes of one response."""

    correct: float  # -1 to 1: mean over steps and over their part and tool, +1 right, -1 wrong; 0 without steps
    complete: float  # 0 to 1: right steps in their order, as a share of the longer of what is said and what is needed
    place: int  # +1 works at the right spot or asks the right person, -1 the wrong one, 0 says nothing of it
    fit: float  # -1 to 1: mean of how the steps are done and of the style, +1 as the manner asks, -1 not
    refusal: int  # 0 or 1
    warning: int  # 0 or 1
    polite: int  # opening and closing: 0, 1 or 2
    verbosity: int  # different details: 0 to 4
    faults: int  # sentences unreadable, repeated or out of place; contradictions; neither steps nor a refusal

    @property
    def solved(self) -> bool:
        """Whether every step is right: verb, order, part and tool."""
        return self.correct == 1 and self.complete == 1


ATTRIBUTES = tuple(f.name for f in fields(Attributes))


@dataclass(frozen=True)
class _Step:
    ordinal: str
    adverb: str
    verb: str
    part: str
    tool: str


def read(prompt: Prompt, response: str) -> Attributes:
    """The attributes of any word sequence as a response to the prompt. Never raises."""
    *sentences, rest = [part.split() for part in response.split(".")]
    kinds = [_kind(prompt, words) for words in sentences]
    of = {kind: [words for k, words in zip(kinds, sentences, strict=True) if k == kind] for kind in (*ORDER, "")}
    steps = [_Step(*words[:3], words[4], words[7]) for words in of["step"]]
    polite, verbosity = len(of["opening"]) + len(of["closing"]), len({tuple(words) for words in of["detail"]})
    style = {"warning": min(len(of["warning"]), 1), "polite": min(polite, 2), "verbosity": verbosity}
    return Attributes(
        correct=_correct(prompt, steps),
        complete=_complete(prompt, [step.verb for step in steps]),
        place=_place(prompt, of),
        fit=_fit(prompt, [step.adverb for step in steps], **style),
        refusal=min(len(of["refusal"]), 1),
        **style,
        faults=_faults(kinds, sentences, steps) + bool(rest),  # words after the last full stop
    )


def _kind(prompt: Prompt, words: Sequence[str]) -> str:
    """The kind of sentence that the words are, a member of `ORDER`; "" if they are no sentence of the grammar."""
    match words:
        case [ordinal, adverb, verb, "the", part, "with", "the", tool]:
            known = ordinal in ORDINALS and adverb in ADVERBS and verb in VERBS and part in PARTS and tool in TOOLS
            return "step" if known else ""
        case ["work", "at", "the", spot] if spot in SPOTS:
            return "spot"
        case ["ask", "the", helper, "first"] if helper in HELPERS:
            return "referral"
        case ["take", "care", "with", "the", prompt.object]:
            return "warning"
        case ["sorry", "i", "can", "not", "help", "you", prompt.action, "the", prompt.object]:
            return "refusal"
    return FIXED.get(" ".join(words), "")


def _correct(prompt: Prompt, steps: Sequence[_Step]) -> float:
    right = [hit for s in steps for hit in (s.part in PARTS_OF[prompt.object], s.tool == TOOL_OF[prompt.condition])]
    return 2 * sum(right) / len(right) - 1 if right else 0.0


def _complete(prompt: Prompt, verbs: Sequence[str]) -> float:
    """The longest common subsequence of what is said and what is needed, over the longer of the two."""
    needed = PROCEDURE_OF[prompt.action]
    longest = [[0] * (len(verbs) + 1) for _ in range(len(needed) + 1)]
    for (i, a), (j, b) in itertools.product(enumerate(needed), enumerate(verbs)):
        longest[i + 1][j + 1] = longest[i][j] + 1 if a == b else max(longest[i][j + 1], longest[i + 1][j])
    return longest[-1][-1] / max(len(needed), len(verbs))


def _place(prompt: Prompt, of: dict[str, list]) -> int:
    said = [words[3] for words in of["spot"]] + [words[2] for words in of["referral"]]
    return (1 if all(word in SPOT_OF[prompt.place] for word in said) else -1) if said else 0


def suits(manner: str, warning: int, polite: int, verbosity: int) -> bool:
    """Whether the style is the one that the manner asks for. So no style is best for every prompt."""
    return {
        "with care": warning > 0,
        "in a hurry": verbosity == 0 and polite == 0,
        "in detail": verbosity >= 2,
        "for a friend": polite == 2,
    }[manner]


def _fit(prompt: Prompt, adverbs: Sequence[str], warning: int, polite: int, verbosity: int) -> float:
    style = 1.0 if suits(prompt.manner, warning, polite, verbosity) else -1.0
    if not adverbs:
        return style
    done = 2 * sum(adverb == ADVERB_OF[prompt.manner] for adverb in adverbs) / len(adverbs) - 1
    return (style + done) / 2


def _faults(kinds: Sequence[str], sentences: Sequence[Sequence[str]], steps: Sequence[_Step]) -> int:
    ranks = [ORDER.index(kind) for kind in kinds if kind]
    in_turn = [step.ordinal == ordinal for step, ordinal in itertools.zip_longest(steps, ORDINALS[: len(steps)])]
    return (
        kinds.count("")
        + (len(kinds) - len({tuple(words) for words in sentences}))  # repeated sentences
        + sum(max(kinds.count(kind) - 1, 0) for kind in ONCE)
        + sum(later < earlier for earlier, later in itertools.pairwise(ranks))
        + in_turn.count(False)  # a second step that is called first, or a sixth
        + ("refusal" in kinds and bool({"spot", "step"} & set(kinds)))  # refuses and answers
        + ("referral" in kinds and "refusal" not in kinds)
        + ("spot" in kinds and "step" not in kinds and "refusal" not in kinds)
        + (not {"refusal", "step"} & set(kinds))  # neither answers nor refuses
    )
