"""Responses of a model to prompts: batched, left-padded, with a KV cache, greedy or sampled."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.errors import BadInput

Sample = tuple[list[int], list[int]]  # prompt ids, response ids with the <eos> it ended in, if it did


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Sample]:
    """One response for each prompt (messages), as token ids; temperature 0 is greedy.

    Raises BadInput where a prompt leaves no room for one new token in the model's context.
    """
    samples = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # generate() samples from the global generator
        for start in range(0, len(prompts), batch_size):
            samples += _sample_batch(model, tokenizer, prompts[start : start + batch_size], max_new_tokens, temperature)
    return samples


def _sample_batch(model, tokenizer, prompts, max_new_tokens, temperature) -> list[Sample]:
    ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)["input_ids"]
    return respond(model, tokenizer, ids, max_new_tokens, temperature)


@torch.no_grad()
def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: list[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
) -> list[Sample]:
    """One response for each prompt, given as token ids, in one batch; see `sample`."""
    context, length = model.config.max_position_embeddings, max(map(len, prompts_ids))
    if length >= context:
        raise BadInput(f"prompt of {length} tokens: expected fewer than the model's context of {context}")
    padding = [length - len(prompt) for prompt in prompts_ids]
    rows = [[tokenizer.pad_token_id] * n + prompt for n, prompt in zip(padding, prompts_ids, strict=True)]
    ids = torch.tensor(rows, device=model.device)
    mask = (torch.arange(length)[None] >= torch.tensor(padding)[:, None]).long().to(model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=min(max_new_tokens, context - length),
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    responses = [_up_to_end(row, ends) for row in output[:, length:].tolist()]
    return list(zip(prompts_ids, responses, strict=True))


def _up_to_end(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]


def decode(tokenizer: PreTrainedTokenizerBase, samples: list[Sample]) -> list[str]:
    """The responses as text."""
    return tokenizer.batch_decode([response for _, response in samples], skip_special_tokens=True)


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[dict]], **how) -> list[str]:
    """The response texts of `sample`, which takes the same arguments."""
    return decode(tokenizer, sample(model, tokenizer, prompts, **how))
