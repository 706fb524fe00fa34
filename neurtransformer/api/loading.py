"""`load`: a run, ready to use."""

from typing import TYPE_CHECKING

from neurtransformer.api.given import Named, name_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neurtransformer.spiking.model import SpikingLanguageModel


def load(run: Named = None) -> "tuple[SpikingLanguageModel, PreTrainedTokenizerBase]":
    """The spiking model of a run, ready to use, and its tokenizer.

    run: the folder of a run, its name on the Hugging Face hub (`owner/name`), or the name of one
        that ships with the package, such as "gpt2-nano-spiking". None is the last run that a
        command made from the current folder.

    Returns a pair. The model is a transformers model, in float32 and in eval mode: called with
    `input_ids` (batch, length) int64 it returns `logits` (batch, length, vocabulary) and
    `last_hidden_state` (batch, length, width), both float32, and it has `generate`. The first
    token, which begins every text, is built in: texts are at most `model.config.context` tokens
    long. The tokenizer is the one of the dense model.

    Raises UserError if there is no such run, or it is damaged or incomplete.
    """
    from neurtransformer import runs

    folder = runs.resolve("run", name_of(run))

    from neurtransformer.spiking.load import load_run

    return load_run(folder)
