"""`load`: a run, ready to use."""

from typing import TYPE_CHECKING

from neurtransformer.api.given import Named, name_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neurtransformer.spiking.model import SpikingLanguageModel


def load(run: Named = None) -> "tuple[SpikingLanguageModel, PreTrainedTokenizerBase]":
    """The spiking model of a run, in float32 and eval mode, and its tokenizer.

    run: the folder of a run, or the name of one that ships with the package, such as
    "gpt2-nano-spiking". None is the last run made from the current folder.

    The model is a transformers model: called with `input_ids` (batch, length) int64 it returns
    `logits` (batch, length, vocabulary) and `last_hidden_state` (batch, length, width), both
    float32, and it has `generate`. The first token, which begins every text, is built in: texts
    are at most `model.config.context` tokens long.

    Raises UserError if there is no such run, or it is damaged or incomplete.
    """
    from neurtransformer import runs

    folder = runs.resolve("run", name_of(run))

    from neurtransformer.spiking.load import load_run

    return load_run(folder)
