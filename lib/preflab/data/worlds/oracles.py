"""The oracle of each language, by the language's name."""

from preflab.data.worlds.answers import oracle as answers
from preflab.data.worlds.guides import oracle as guides
from preflab.data.worlds.language import Oracle

ORACLES = {
    "answers": Oracle(answers.read, answers.ATTRIBUTES),
    "guides": Oracle(guides.read, guides.ATTRIBUTES),
}
