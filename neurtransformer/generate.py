"""Text from a prompt: by the spiking model, in PyTorch or in integers, or by its teacher."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurtransformer.errors import UserError
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.text import drawn_with, prompt_ids

TEMPERATURE = 0.8
TOP_K = 40


def generate(
    model: SpikingLanguageModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    tokens: int,
    *,
    backend: str,
    seed: int,
) -> str:
    """The prompt and up to `tokens` more tokens. The same seed gives the same text.

    backend: torch or, for the spiking model alone, integer. In torch both models draw the same
    random numbers, so their texts part only where their predictions do.
    Raises UserError if the prompt is empty or the text would outgrow the model's positions.
    """
    ids = torch.tensor([prompt_ids(tokenizer, prompt)])
    context = getattr(model.config, "context", model.config.max_position_embeddings)
    check_length(ids.shape[1], tokens, context)
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    torch.manual_seed(seed)
    if backend == "integer":
        from neurtransformer.integer.model import IntegerGPT2

        network = IntegerGPT2.from_spiking(model)
        text = network.generate(ids, tokens, temperature=TEMPERATURE, top_k=TOP_K, stop=ends)
    else:
        with drawn_with(
            model, do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, eos_token_id=ends
        ):
            text = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                use_cache=True,
                pad_token_id=0,
            )
    return str(tokenizer.decode(text[0], skip_special_tokens=True))


def check_length(prompt: int, tokens: int, positions: int) -> None:
    """Raise UserError unless a prompt of so many tokens and its continuation fit the model."""
    if prompt + tokens > positions:
        raise UserError(
            f"{prompt} tokens of prompt and {tokens} more are over the {positions} positions of "
            "the model: shorten the prompt or ask for fewer tokens"
        )
