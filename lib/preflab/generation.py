"""Responses of a model to prompts: batched, left-padded, greedy or sampled."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.errors import BadInput


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """One response text for each prompt (messages); temperature 0 is greedy.

    Raises BadInput where a prompt leaves no room for one new token in the model's context.
    """
    context = model.config.max_position_embeddings
    texts = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # generate() samples from the global generator
        for start in range(0, len(prompts), batch_size):
            batch = tokenizer.apply_chat_template(
                prompts[start : start + batch_size],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
                tokenizer_kwargs={"padding_side": "left"},
            ).to(model.device)
            length = batch["input_ids"].shape[1]
            if length >= context:
                raise BadInput(f"prompt of {length} tokens: expected fewer than the model's context of {context}")
            sampling = {"do_sample": temperature > 0}
            if temperature:
                sampling |= {"temperature": temperature, "top_k": 0}
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=min(max_new_tokens, context - length),
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
            texts += tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    return texts
