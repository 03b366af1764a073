"""The languages by name, so that a value that names one can be hashed, printed and sent to a worker."""

from preflab.data.worlds.answers import grammar as answers
from preflab.data.worlds.guides import grammar as guides
from preflab.data.worlds.language import Language

ANSWERS = Language("answers", answers.all_prompts, answers.Prompt.parse, answers.sample_response, answers.vocabulary)
GUIDES = Language("guides", guides.all_prompts, guides.Prompt.parse, guides.sample_response, guides.vocabulary)
LANGUAGES = {language.name: language for language in (ANSWERS, GUIDES)}
