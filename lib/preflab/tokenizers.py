"""Tokenizers: a word each for worlds, byte-level BPE for a reader's own texts, a model's own by name."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from preflab.errors import BadInput, first_line
from preflab.hub import ask_hub_once

SPECIAL_TOKENS = ["<pad>", "<unk>", "<eos>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<assistant>{% generation %}{{ message['content'] }}<eos>{% endgeneration %}"
    "{% else %}<user>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLAIN_TEMPLATE = (  # of text alone, for tokenizers without markers of their own
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n') + '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"
)


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, for the worlds' language."""
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _chat_tokenizer(tokenizer)


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the reader's own texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _chat_tokenizer(tokenizer)


def _chat_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def load_tokenizer(name: str, revision: str | None = None, plain: bool = False) -> PreTrainedTokenizerBase:
    """A saved or hub tokenizer with a chat template and a pad token.

    With `plain`, one without a template gets PLAIN_TEMPLATE: for a model that SFT is about to teach it.
    Raises BadInput where it cannot be loaded or lacks a template.
    """
    if not Path(name).is_dir():
        ask_hub_once()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"tokenizer {name!r}: not loadable: {first_line(error)}") from error
    if tokenizer.chat_template is None and plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.chat_template is None:
        raise BadInput(f"tokenizer {name!r}: has no chat template, expected a chat or instruct model, or sft_source")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
