"""Text from a prompt: by the spiking model, in PyTorch or in integers, or by its teacher."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurtransformer.errors import UserError
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.text import drawn_with, prompt_ids


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: from the `top_k` likeliest, 0 for all, and of these from the
    likeliest that together have a chance of `top_p`, with logits divided by `temperature`. greedy:
    the likeliest one, and nothing is drawn."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 1.0
    greedy: bool = False


USUAL = Sampling()


class Teller:
    """Tells a text piece by piece while its tokens come; what it has told so far is `told`.

    It has the interface of transformers' streamers. A tokenizer that tidies up spaces changes what
    came before, so nothing is told of its text until it is whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.told = ""

    def text(self) -> str:
        """The text of all tokens so far."""
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def put(self, ids: Tensor) -> None:
        """The next tokens, any shape: the prompt, then what is generated."""
        self.ids += ids.flatten().tolist()
        if not self.tokenizer.clean_up_tokenization_spaces:
            # half a character is decoded to this, until the rest comes
            self.tell(self.text().rstrip("\ufffd"))

    def end(self) -> None:
        """No more tokens come."""
        self.tell(self.text())

    def tell(self, text: str) -> None:
        """Tell what is new of a text that begins with what was told."""
        if text.startswith(self.told) and text != self.told:
            self.on_text(text[len(self.told) :])
            self.told = text


def generate(
    model: SpikingLanguageModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    tokens: int,
    *,
    backend: str,
    seed: int,
    sampling: Sampling = USUAL,
    on_text: Callable[[str], None] = lambda piece: None,
) -> str:
    """The prompt and up to `tokens` more tokens. The same seed gives the same text.

    sampling: how tokens are drawn. on_text: called with each piece of text as soon as there is one.

    backend: torch or, for the spiking model alone, integer. In torch both models draw the same
    random numbers, so their texts part only where their predictions do.
    Raises UserError if the prompt is empty or the text would outgrow the model's positions.
    """
    ids = torch.tensor([prompt_ids(tokenizer, prompt)])
    context = getattr(model.config, "context", model.config.max_position_embeddings)
    check_length(ids.shape[1], tokens, context)
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    teller = Teller(tokenizer, on_text)
    torch.manual_seed(seed)
    if backend == "integer":
        from neurtransformer.integer.model import IntegerGPT2

        network = IntegerGPT2.from_spiking(model)
        teller.put(ids)
        network.generate(
            ids,
            tokens,
            temperature=sampling.temperature,
            top_k=1 if sampling.greedy else sampling.top_k,
            top_p=sampling.top_p,
            stop=ends,
            on_token=teller.put,
        )
        teller.end()
    else:
        drawn: dict[str, object] = {"do_sample": False}
        if not sampling.greedy:
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
            }
        with drawn_with(model, **drawn, eos_token_id=ends):
            ids = ids.to(model.device)
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                use_cache=True,
                pad_token_id=0,
                streamer=teller,
            )
    return teller.text()


def check_length(prompt: int, tokens: int, positions: int) -> None:
    """Raise UserError unless a prompt of so many tokens and its continuation fit the model."""
    if prompt + tokens > positions:
        raise UserError(
            f"{prompt} tokens of prompt and {tokens} more are over the {positions} positions of "
            "the model: shorten the prompt or ask for fewer tokens"
        )
