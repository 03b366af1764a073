"""Preference worlds: small languages, oracles that read them, and objectives whose relation is known.

Each module has one job:

    language        what a language is: prompts and a grammar; an oracle
    answers, guides the two languages; `languages` and `oracles` have them by name
    objectives      utilities over attributes, and worlds of two objectives
    named           worlds by name
    made, drawn     worlds with a wanted relation, by hand and at random
    pairs           preference pairs, labelled by Bradley-Terry
    conversations   what the base model learns from
"""

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
    all_prompts,
    sample_response,
    vocabulary,
)
from preflab.data.worlds.answers.oracle import ATTRIBUTES, Attributes, read
from preflab.data.worlds.conversations import sft_conversations
from preflab.data.worlds.drawn import RandomWorld
from preflab.data.worlds.language import Language
from preflab.data.worlds.languages import ANSWERS, GUIDES, LANGUAGES
from preflab.data.worlds.made import make_world
from preflab.data.worlds.named import WORLDS, get_world, world_objectives
from preflab.data.worlds.objectives import Objective, World
from preflab.data.worlds.oracles import ORACLES
from preflab.data.worlds.pairs import preference_pairs, train_and_test_pairs, world_pairs

__all__ = [
    "ANSWERS",
    "ATTRIBUTES",
    "CLOSINGS",
    "FILLERS",
    "GUIDES",
    "LANGUAGES",
    "OPENINGS",
    "ORACLES",
    "REFUSAL",
    "STEPS",
    "STEP_OF",
    "TOOLS",
    "TOOL_OF",
    "WARNING",
    "WORLDS",
    "Attributes",
    "Language",
    "Objective",
    "Prompt",
    "RandomWorld",
    "World",
    "all_prompts",
    "get_world",
    "make_world",
    "preference_pairs",
    "read",
    "sample_response",
    "sft_conversations",
    "train_and_test_pairs",
    "vocabulary",
    "world_objectives",
    "world_pairs",
]
