"""Preference worlds: a small language, an oracle that reads it, and objectives whose relation is known.

Each module has one job:

    language        words, prompts, responses
    oracle          the attributes of any response
    objectives      utilities over attributes, and worlds of two objectives
    named, made     worlds by name, and worlds with a wanted relation
    pairs           preference pairs, labelled by Bradley-Terry
    conversations   what the base model learns from
"""

from preflab.data.worlds.conversations import sft_conversations
from preflab.data.worlds.language import (
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
    sample_prompts,
    sample_response,
    vocabulary,
)
from preflab.data.worlds.made import make_world
from preflab.data.worlds.named import WORLDS, get_world, world_objectives
from preflab.data.worlds.objectives import Objective, World
from preflab.data.worlds.oracle import ATTRIBUTES, Attributes, read
from preflab.data.worlds.pairs import preference_pairs, train_and_test_pairs, world_pairs

__all__ = [
    "ATTRIBUTES",
    "CLOSINGS",
    "FILLERS",
    "OPENINGS",
    "REFUSAL",
    "STEPS",
    "STEP_OF",
    "TOOLS",
    "TOOL_OF",
    "WARNING",
    "WORLDS",
    "Attributes",
    "Objective",
    "Prompt",
    "World",
    "all_prompts",
    "get_world",
    "make_world",
    "preference_pairs",
    "read",
    "sample_prompts",
    "sample_response",
    "sft_conversations",
    "train_and_test_pairs",
    "vocabulary",
    "world_objectives",
    "world_pairs",
]
