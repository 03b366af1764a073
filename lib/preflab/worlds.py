"""Preference worlds: a small language, an oracle that reads it back, objectives with known relations.

A *prompt* asks how to do something: ``how do i fix the old lamp at home ?``. A *response* is a few
short sentences: ``sure . use the wire . then test it . good luck .``. The oracle parses any word
sequence, a model's broken ones included, back into `Attributes`; an `Objective` is a linear utility
over them; pairs are drawn from it by Bradley-Terry with a temperature. Because the utilities are
known, so are two numbers that no real data set offers: the *compatibility* of two objectives
(correlation of their utilities) and the *strength* of a signal (Bayes accuracy of its labels).
"""

import hashlib
import itertools
from dataclasses import dataclass, field, fields
from functools import cache

import numpy as np
from datasets import Dataset
from scipy.optimize import brentq
from scipy.special import expit

from preflab.errors import BadInput

# --- the language -------------------------------------------------------------------------------

TOOL_OF = {  # the one right tool for each object: what `correct` is judged by
    "lamp": "wire", "radio": "wire", "door": "key", "gate": "key", "bike": "wrench", "car": "wrench",
    "tent": "rope", "boat": "rope", "fence": "hammer", "roof": "hammer", "chair": "glue", "vase": "glue",
}  # fmt: skip
STEP_OF = {  # the one right second step for each action: what `complete` is judged by
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
    action: str
    adjective: str
    object: str
    place: str

    @property
    def hazardous(self) -> bool:
        return self.action in HAZARDOUS

    def __str__(self) -> str:
        return f"how do i {self.action} the {self.adjective} {self.object} {self.place} ?"

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """Inverse of ``str``. Raises BadInput for text outside the language."""
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
    """Every prompt of a split, "train" (four fifths) or "test". One split serves every world and SFT,
    so a test prompt has been seen by nothing that was ever trained."""
    prompts = (
        Prompt(action, adjective, object_, place)
        for action in STEP_OF
        for adjective in ADJECTIVES
        for object_ in TOOL_OF
        for place in PLACES
    )
    return tuple(p for p in prompts if (_fraction(str(p)) < 0.2) == (split == "test"))


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def vocabulary() -> list[str]:
    """All words of the language, in a fixed order."""
    phrases = [*OPENINGS, *CLOSINGS, WARNING, REFUSAL, *FILLERS, *PLACES, "how do i the use then it . ?"]
    words = " ".join([*phrases, *STEP_OF, *STEPS, *ADJECTIVES, *TOOL_OF, *TOOLS]).split()
    return sorted(set(words))


def sample_prompts(split: str, n: int, hazard_share: float, rng: np.random.Generator) -> list[Prompt]:
    """n distinct prompts, `hazard_share` of them about a hazardous action."""
    n_hazardous = round(n * hazard_share)
    chosen = []
    for hazardous, wanted in ((True, n_hazardous), (False, n - n_hazardous)):
        pool = [p for p in all_prompts(split) if p.hazardous == hazardous]
        if wanted > len(pool):
            raise BadInput(f"{wanted} prompts with hazardous={hazardous}: the {split} split has {len(pool)}")
        chosen += [pool[i] for i in rng.permutation(len(pool))[:wanted]]
    return [chosen[i] for i in rng.permutation(n)]


def sample_response(prompt: Prompt, rng: np.random.Generator) -> str:
    """A well-formed response: varied, often right, sometimes not. What the base model learns from and
    what pairs are drawn from."""

    def maybe(p: float) -> bool:
        return rng.random() < p

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


# --- the oracle ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attributes:
    """What the oracle reads off a response to a prompt."""

    correct: int  # +1 the right tool, -1 a wrong one, 0 none named
    complete: int  # 1 if the right second step follows the tool
    refusal: int  # 0 or 1
    warning: int  # 0 or 1
    polite: int  # opening and closing: 0, 1 or 2
    verbosity: int  # filler sentences: 0 to 3
    faults: int  # unreadable, repeated or misplaced sentences; contradiction; nothing said

    def vector(self) -> np.ndarray:
        return np.array([getattr(self, f.name) for f in fields(self)], dtype=float)


ATTRIBUTES = tuple(f.name for f in fields(Attributes))


def _kind(words: list[str]) -> str:
    """Which sentence of the grammar this is, "" if none."""
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


ORDER = ("opening", "warning", "refusal", "answer", "step", "filler", "closing")


def read(prompt: Prompt, response: str) -> Attributes:
    """The oracle: attributes of any word sequence. Never raises; what it cannot read is a fault."""
    *sentences, rest = [part.split() for part in response.split(".")]
    parsed = [(_kind(words), tuple(words)) for words in sentences]
    kinds = [kind for kind, _ in parsed]
    tools = [words[2] for kind, words in parsed if kind == "answer"]
    # A second step counts only where it directly follows a tool.
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
        + ("refusal" in kinds and "answer" in kinds)  # says no and does it
        + (kinds.count("step") - len(steps))  # "then ..." after nothing
        + (not {"refusal", "answer"} & set(kinds))  # neither answers nor declines
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


# --- objectives and worlds ----------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """A linear utility over attributes, u = sum_k (weights_k + [hazardous] * hazard_weights_k) a_k.

    `strength` is the Bayes accuracy of its labels, E[sigmoid(|u - u'| / T)] over untied pairs, and
    fixes the temperature T (`World.temperature`). A fault always costs one unit.
    """

    name: str
    weights: dict[str, float]
    hazard_weights: dict[str, float] = field(default_factory=dict)
    hazard_share: float = 0.4  # of the prompts its pairs are drawn for
    strength: float = 0.85

    def __post_init__(self):
        if not 0.5 < self.strength < 1:
            raise BadInput(f"objective {self.name}: strength {self.strength}, expected 0.5 < strength < 1")

    def utility(self, prompt: Prompt, response: str) -> float:
        return self.utility_of(read(prompt, response), prompt.hazardous)

    def utility_of(self, attributes: Attributes, hazardous: bool) -> float:
        u = sum(w * getattr(attributes, k) for k, w in self.weights.items())
        if hazardous:
            u += sum(w * getattr(attributes, k) for k, w in self.hazard_weights.items())
        return u - attributes.faults


@dataclass(frozen=True)
class World:
    """Two objectives over the one language: a setting of paper S with known numbers."""

    name: str
    objectives: tuple[Objective, Objective]

    def objective(self, name: str) -> Objective:
        for objective in self.objectives:
            if objective.name == name:
                return objective
        offered = ", ".join(o.name for o in self.objectives)
        raise BadInput(f"world:{self.name}: objective {name!r} does not exist, expected one of: {offered}")

    def temperature(self, name: str) -> float:
        """T at which the labels of the objective have its wanted strength. Raises BadInput if none has."""
        objective = self.objective(name)
        u, v = pool_utilities(objective, objective.hazard_share)
        hazardous = np.array([prompt.hazardous for prompt, _, _ in _pool(objective.hazard_share)])
        untied = ~np.isclose(u, v)
        # Ties are redrawn within a prompt, so each kind of prompt keeps its share whatever its ties.
        weight = np.zeros_like(u)
        for kind in (hazardous, ~hazardous):
            weight[kind & untied] = kind.sum() / max((kind & untied).sum(), 1)
        gaps, weight = np.abs(u - v)[untied], weight[untied]
        return float(brentq(lambda t: np.average(expit(gaps / t), weights=weight) - objective.strength, 1e-3, 1e6))

    def compatibility(self) -> dict[str, float]:
        """Relation of the two objectives over one pool of prompts and responses.

        Returns `correlation` of their utilities, and `disagreement`: the share of response pairs,
        tied under neither, that they order differently.
        """
        a, b = self.objectives
        share = (a.hazard_share + b.hazard_share) / 2
        (ua, va), (ub, vb) = pool_utilities(a, share), pool_utilities(b, share)
        untied = ~np.isclose(ua, va) & ~np.isclose(ub, vb)
        opposed = np.sign(ua - va) != np.sign(ub - vb)
        return {
            "correlation": float(np.corrcoef(np.r_[ua, va], np.r_[ub, vb])[0, 1]),
            "disagreement": float(opposed[untied].mean()),
        }


@cache
def _pool(hazard_share: float) -> tuple[tuple[Prompt, Attributes, Attributes], ...]:
    rng = np.random.default_rng(20250101)
    prompts = sample_prompts("train", 2000, hazard_share, rng)
    return tuple((p, read(p, sample_response(p, rng)), read(p, sample_response(p, rng))) for p in prompts)


def pool_utilities(objective: Objective, hazard_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Utilities of two independent responses to each of 2,000 fixed prompts: two arrays (2000,)."""
    pool = _pool(hazard_share)
    u = np.array([objective.utility_of(first, prompt.hazardous) for prompt, first, _ in pool])
    v = np.array([objective.utility_of(second, prompt.hazardous) for prompt, _, second in pool])
    return u, v


WORLDS = {
    world.name: world
    for world in (
        # HH-RLHF's analogue: each objective has its own prompts; on the shared part they pull apart.
        World("conflict", (
            Objective("helpful", {"correct": 1, "complete": 1, "refusal": -2, "polite": 0.25}, hazard_share=0.2),
            Objective("harmless", {"refusal": 1, "warning": 0.5}, {"refusal": 1.5, "warning": 0.5}, hazard_share=0.8),
        )),
        # HelpSteer2's analogue: correlated quality attributes of the same responses.
        World("attributes", (
            Objective("helpfulness", {"correct": 1, "complete": 1, "refusal": -1, "polite": 0.5}, hazard_share=0.1),
            Objective("verbosity", {"verbosity": 1, "polite": 0.5, "complete": 0.5, "refusal": -0.5}, hazard_share=0.1),
        )),
        # PKU-SafeRLHF's analogue: two labels on the same pairs, the safety label much the cleaner.
        World("safety", (
            Objective("safer", {"warning": 0.5}, {"refusal": 3, "warning": 1}, hazard_share=0.6, strength=0.97),
            Objective("better", {"correct": 1, "complete": 0.75, "refusal": -1, "polite": 0.25},
                      {"refusal": 0.5}, hazard_share=0.6, strength=0.75),
        )),
        # UltraFeedback's analogue: two aspects of response quality that mostly agree.
        World("compatible", (
            Objective("instruction_following", {"correct": 1, "complete": 1, "refusal": -1}, hazard_share=0.1),
            Objective("truthfulness", {"correct": 1.5, "complete": 0.25, "warning": 0.25}, hazard_share=0.1),
        )),
    )
}  # fmt: skip


def get_world(name: str) -> World:
    """A named world. Raises BadInput naming those that exist."""
    if name not in WORLDS:
        raise BadInput(f"world:{name}: no such world, expected one of: {', '.join(WORLDS)}")
    return WORLDS[name]


def make_world(compatibility: float, strength: float | tuple[float, float], name: str = "made") -> World:
    """A world whose objectives `first` and `second` have the wanted correlation and label strengths.

    `first` rewards a right and complete answer; `second` is rho * z(first) + sqrt(1 - rho^2) * z(rest),
    with `rest` rewarding warnings, politeness and fillers, made uncorrelated with `first` over the
    pool, z(.) scaling to unit variance. Raises BadInput unless -1 <= compatibility <= 1 and each
    strength lies in (0.5, 1).
    """
    if not -1 <= compatibility <= 1:
        raise BadInput(f"compatibility={compatibility}: expected a number from -1 to 1")
    strengths = strength if isinstance(strength, tuple) else (strength, strength)
    x = np.array([a.vector() for _, *both in _pool(0.2) for a in both])
    covariance = np.cov(x, rowvar=False)

    def unit(w: np.ndarray) -> np.ndarray:
        return w / np.sqrt(w @ covariance @ w)

    def weights_of(**wanted: float) -> np.ndarray:
        return np.array([wanted.get(k, 0.0) for k in ATTRIBUTES])

    w_first = unit(weights_of(correct=1, complete=1, refusal=-1))
    w_rest = weights_of(warning=1, polite=0.5, verbosity=0.5)
    w_rest = unit(w_rest - (w_rest @ covariance @ w_first) * w_first)
    w_second = compatibility * w_first + np.sqrt(1 - compatibility**2) * w_rest
    first, second = (
        Objective(label, dict(zip(ATTRIBUTES, map(float, w), strict=True)), hazard_share=0.2, strength=s)
        for label, w, s in zip(("first", "second"), (w_first, w_second), strengths, strict=True)
    )
    return World(name, (first, second))


# --- pairs and SFT data -------------------------------------------------------------------------


def preference_pairs(world: World, objective: str, split: str, n: int, rng: np.random.Generator) -> Dataset:
    """n Bradley-Terry pairs, P(first preferred) = sigmoid((u - u') / T), in TRL's conversational format.

    Both responses come from the grammar; pairs tied under the objective are redrawn, as real data
    sets drop them. Prompts are distinct. Raises BadInput where the split has too few.
    """
    spec, temperature = world.objective(objective), world.temperature(objective)
    rows = []
    for prompt in sample_prompts(split, n, spec.hazard_share, rng):
        u = v = 0.0
        while np.isclose(u, v):
            first, second = sample_response(prompt, rng), sample_response(prompt, rng)
            u, v = spec.utility(prompt, first), spec.utility(prompt, second)
        if rng.random() >= expit((u - v) / temperature):
            first, second = second, first
        rows.append(
            {
                "prompt": [{"role": "user", "content": str(prompt)}],
                "chosen": [{"role": "assistant", "content": first}],
                "rejected": [{"role": "assistant", "content": second}],
                "objective": objective,
            }
        )
    return Dataset.from_list(rows)


def world_objectives(name: str) -> list[str]:
    return [objective.name for objective in get_world(name).objectives]


def world_pairs(
    name: str, objective: str, *, n_train: int | None, n_test: int | None, seed: int
) -> tuple[Dataset, Dataset]:
    """Train and test pairs of a named world. The seed draws the training pairs; the test pairs are
    the same for every seed, so that seeds can be compared pair by pair."""
    world = get_world(name)
    train = preference_pairs(world, objective, "train", n_train or 2000, np.random.default_rng([seed, 1]))
    test = preference_pairs(world, objective, "test", n_test or 400, np.random.default_rng([0, 2]))
    return train, test


def sft_conversations(n: int, rng: np.random.Generator) -> Dataset:
    """n prompts, repeats allowed, each with a grammar response: what the base model is trained on."""
    pool = all_prompts("train")
    prompts = [pool[i] for i in rng.integers(len(pool), size=n)]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": str(p)}],
                "completion": [{"role": "assistant", "content": sample_response(p, rng)}],
            }
            for p in prompts
        ]
    )
