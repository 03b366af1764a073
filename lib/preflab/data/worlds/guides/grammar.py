"""The language `guides`: its prompts, and a grammar that draws responses.

A prompt has five parts: ``how do i fix the wet lamp at home with care ?``. A response is a guide:
``sure . work at the bench . first gently open the bulb with the cloth . second gently clear the stand with the cloth .
good luck .``, or it refuses: ``sorry i can not help you burn the lamp . ask the owner first .``.
"""

import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np

from preflab.data.worlds.guides.words import (
    ADVERB_OF,
    ADVERBS,
    CLOSINGS,
    DETAILS,
    HAZARDOUS,
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
from preflab.data.worlds.language import in_split, tilted
from preflab.errors import BadInput

FEWEST, MOST = 2, 5  # steps of a guide


@dataclass(frozen=True)
class Prompt:
    """One question of the language. `str(prompt)` is its text, `Prompt.parse` reads the text back."""

    action: str
    condition: str
    object: str
    place: str
    manner: str

    @property
    def hazardous(self) -> bool:
        """Whether the action does harm."""
        return self.action in HAZARDOUS

    def __str__(self) -> str:
        return f"how do i {self.action} the {self.condition} {self.object} {self.place} {self.manner} ?"

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """The inverse of ``str``. Raises BadInput for text outside the language."""
        words = text.split()
        try:
            prompt = cls(words[3], words[5], words[6], " ".join(words[7:9]), " ".join(words[9:-1]))
        except IndexError:
            prompt = None
        if prompt is None or str(prompt) != text or not _in_language(prompt):
            raise BadInput(f"prompt {text!r}: expected 'how do i ACTION the CONDITION OBJECT PLACE MANNER ?'")
        return prompt


def _in_language(prompt: Prompt) -> bool:
    known = (PROCEDURE_OF, TOOL_OF, PARTS_OF, SPOT_OF, ADVERB_OF)
    return all(part in words for part, words in zip(astuple(prompt), known, strict=True))


@cache
def all_prompts(split: str) -> tuple[Prompt, ...]:
    """Every prompt of a split: "train" has about four fifths of all 27,648 prompts, "test" the others."""
    parts = itertools.product(PROCEDURE_OF, TOOL_OF, PARTS_OF, SPOT_OF, ADVERB_OF)
    return tuple(prompt for prompt in itertools.starmap(Prompt, parts) if in_split(str(prompt), split))


def sample_response(prompt: Prompt, rng: np.random.Generator, shift: float = 0.0) -> str:
    """A random well-formed response. Responses vary; every choice is right at some rate and else wrong.

    The base model learns from such responses, and preference pairs are made of them. A `shift` makes them of another
    kind (`tilted`): above 0 more often right, polite, careful and refusing.
    """
    draw = _Draw(rng, shift)
    sentences = [draw.one(OPENINGS)] if draw.maybe(0.45) else []
    sentences += [f"take care with the {prompt.object}"] if draw.maybe(0.35) else []
    spot, helper = SPOT_OF[prompt.place]
    if draw.maybe(0.4 if prompt.hazardous else 0.15):
        sentences.append(f"sorry i can not help you {prompt.action} the {prompt.object}")
        sentences += [f"ask the {draw.right(0.7, helper, HELPERS)} first"] if draw.maybe(0.7) else []
    else:
        sentences += [f"work at the {draw.right(0.7, spot, SPOTS)}"] if draw.maybe(0.8) else []
        sentences += _steps(prompt, draw)
    wanted = rng.choice(4, p=(0.4, 0.25, 0.2, 0.15))
    sentences += [DETAILS[i] for i in sorted(rng.permutation(len(DETAILS))[:wanted])]
    sentences += [draw.one(CLOSINGS)] if draw.maybe(0.45) else []
    return " ".join(f"{sentence} ." for sentence in sentences)


@dataclass(frozen=True)
class _Draw:
    """Random choices at the rates of the grammar, tilted by the shift."""

    rng: np.random.Generator
    shift: float

    def maybe(self, p: float) -> bool:
        return self.rng.random() < tilted(p, self.shift)

    def one(self, of: Sequence[str]) -> str:
        return of[int(self.rng.integers(len(of)))]

    def right(self, p: float, right: str, of: Sequence[str]) -> str:
        """The right one at the rate p, else any."""
        return right if self.maybe(p) else self.one(of)


def _steps(prompt: Prompt, draw: _Draw) -> list[str]:
    """The sentences of the steps: adverb, verb, part and tool are right or wrong, each for itself."""
    right_adverb, right_tool = ADVERB_OF[prompt.manner], TOOL_OF[prompt.condition]
    said = []
    for ordinal, verb in zip(ORDINALS, _procedure(prompt, draw), strict=False):
        adverb = draw.right(0.5, right_adverb, ADVERBS)
        part = draw.right(0.7, draw.one(PARTS_OF[prompt.object]), PARTS)
        tool = draw.right(0.55, right_tool, TOOLS)
        said.append(f"{ordinal} {adverb} {verb} the {part} with the {tool}")
    return said


def _procedure(prompt: Prompt, draw: _Draw) -> list[str]:
    """The verbs of the steps. They are right, or else one is left out, exchanged, added, or two change places."""
    steps = list(PROCEDURE_OF[prompt.action])
    if draw.maybe(0.55):
        return steps
    rng = draw.rng
    change = draw.one(("leave out", "exchange", "add", "swap"))
    at = int(rng.integers(len(steps)))
    if change == "leave out" and len(steps) > FEWEST:
        del steps[at]
    elif change == "add" and len(steps) < MOST:
        steps.insert(at, draw.one(VERBS))
    elif change == "swap":
        other = int(rng.integers(len(steps) - 1))
        steps[other], steps[other + 1] = steps[other + 1], steps[other]
    else:
        steps[at] = draw.one(VERBS)
    return steps


def vocabulary() -> list[str]:
    """All words of the language, sorted."""
    phrases = [*OPENINGS, *CLOSINGS, *DETAILS, *SPOT_OF, *ADVERB_OF, "how do i the ?", "take care with the"]
    phrases += ["sorry i can not help you the", "ask the first", "work at the", "the with the ."]
    words = [*PROCEDURE_OF, *VERBS, *PARTS_OF, *PARTS, *TOOL_OF, *TOOLS, *SPOTS, *HELPERS, *ADVERBS, *ORDINALS]
    return sorted(set(" ".join([*phrases, *words]).split()))
