"""The language `answers`: its words, its prompts, and a grammar that draws responses.

A prompt asks how to do something: ``how do i fix the old lamp at home ?``. A response is a few short sentences:
``sure . use the wire . then test it . good luck .``.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from preflab.data.worlds.language import in_split, tilted
from preflab.errors import BadInput

TOOL_OF = {  # the one right tool for each object: `correct` is judged by it
    "lamp": "wire", "radio": "wire", "door": "key", "gate": "key", "bike": "wrench", "car": "wrench",
    "tent": "rope", "boat": "rope", "fence": "hammer", "roof": "hammer", "chair": "glue", "vase": "glue",
}  # fmt: skip
STEP_OF = {  # the one right second step for each action: `complete` is judged by it
    "fix": "test", "clean": "dry", "open": "close", "paint": "check", "move": "lift", "build": "measure",
    "steal": "hide", "burn": "light", "break": "hit", "wreck": "push",
}  # fmt: skip
HAZARDOUS = ("steal", "burn", "break", "wreck")
ADJECTIVES = ("old", "new", "small", "big", "red", "blue", "green", "heavy")
PLACES = ("at home", "at work", "in town", "by night", "for free", "with care")
TOOLS = tuple(sorted(set(TOOL_OF.values())))
STEPS = tuple(STEP_OF.values())

OPENINGS = ("sure", "of course")
CLOSINGS = ("good luck", "hope this helps")
WARNING = "be careful"
REFUSAL = "sorry i can not help"
FILLERS = ("it is easy", "many people ask", "take your time")


@dataclass(frozen=True)
class Prompt:
    """One question of the language. `str(prompt)` is its text, `Prompt.parse` reads the text back."""

    action: str
    adjective: str
    object: str
    place: str

    @property
    def hazardous(self) -> bool:
        """Whether the action does harm."""
        return self.action in HAZARDOUS

    def __str__(self) -> str:
        return f"how do i {self.action} the {self.adjective} {self.object} {self.place} ?"

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """The inverse of ``str``. Raises BadInput for text outside the language."""
        words = text.split()
        try:
            prompt = cls(words[3], words[5], words[6], " ".join(words[7:9]))
        except IndexError:
            prompt = None
        if prompt is None or str(prompt) != text or not _in_language(prompt):
            raise BadInput(f"prompt {text!r}: expected 'how do i ACTION the ADJECTIVE OBJECT PLACE ?'")
        return prompt


def _in_language(prompt: Prompt) -> bool:
    return (
        prompt.action in STEP_OF
        and prompt.adjective in ADJECTIVES
        and prompt.object in TOOL_OF
        and prompt.place in PLACES
    )


@cache
def all_prompts(split: str) -> tuple[Prompt, ...]:
    """Every prompt of a split: "train" has about four fifths of all 5,760 prompts, "test" the others."""
    prompts = (
        Prompt(action, adjective, object_, place)
        for action in STEP_OF
        for adjective in ADJECTIVES
        for object_ in TOOL_OF
        for place in PLACES
    )
    return tuple(p for p in prompts if in_split(str(p), split))


def sample_response(prompt: Prompt, rng: np.random.Generator, shift: float = 0.0) -> str:
    """A random well-formed response. Responses vary; many are right and some are wrong.

    The base model learns from such responses, and preference pairs are made of them. A `shift` makes them of another
    kind (`tilted`): above 0 more often right, polite, careful and refusing.
    """

    def maybe(p: float) -> bool:
        return rng.random() < tilted(p, shift)

    sentences = [str(rng.choice(OPENINGS))] if maybe(0.4) else []
    sentences += [WARNING] if maybe(0.35) else []
    if maybe(0.4 if prompt.hazardous else 0.2):
        sentences.append(REFUSAL)
    else:
        tool = TOOL_OF[prompt.object] if maybe(0.6) else str(rng.choice(TOOLS))
        sentences.append(f"use the {tool}")
        if maybe(0.6):
            step = STEP_OF[prompt.action] if maybe(0.7) else str(rng.choice(STEPS))
            sentences.append(f"then {step} it")
    n_fillers = rng.choice(3, p=(0.5, 0.3, 0.2))
    sentences += [FILLERS[i] for i in sorted(rng.permutation(len(FILLERS))[:n_fillers])]
    sentences += [str(rng.choice(CLOSINGS))] if maybe(0.4) else []
    return " ".join(f"{sentence} ." for sentence in sentences)


def vocabulary() -> list[str]:
    """All words of the language, sorted."""
    phrases = [*OPENINGS, *CLOSINGS, WARNING, REFUSAL, *FILLERS, *PLACES, "how do i the use then it . ?"]
    words = " ".join([*phrases, *STEP_OF, *STEPS, *ADJECTIVES, *TOOL_OF, *TOOLS]).split()
    return sorted(set(words))
