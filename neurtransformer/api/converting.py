"""`convert`: a dense model to a run, what `neurtx convert` does."""

import time
from pathlib import Path
from typing import Any, Literal

from neurtransformer.api.given import name_of, path_of
from neurtransformer.progress import SILENT, Progress

MEASURED = ("ppl_ratio", "cosine_similarity", "token_agreement")
"""What is kept of the measurement at the end."""


def convert(
    model: str | Path,
    out: str | Path | None = None,
    *,
    config: str | Path | None = None,
    attention: str | None = None,
    coding: Literal["rate", "phase"] | None = None,
    timesteps: int | None = None,
    text: str | Path | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Turn a dense GPT-2 or Llama into a spiking run, and write the run's folder.

    model: the dense model: a short name (`neurtransformer.dense.KNOWN`), a name on the hub, a local
        folder or a GGUF file.
    out: the folder to write. None is a free name below ./runs.
    config: a YAML recipe. What it leaves out, for None all, is as in configs/default.yaml.
    attention: "ttfs", a race of token neurons, or "linear", fast weights. None is the recipe's,
        which is "ttfs" by default.
    coding: one code for the whole network, "rate" or "phase". None is the recipe's: by default
        "rate" in the feed-forward blocks and "phase" in the attention.
    timesteps: T, the number of time steps in which a neuron sends one value, 1 to 64, or 1 to 8
        where values are phase coded. The attention has no more than that. None is the recipe's: by
        default 8 in the feed-forward blocks and 5 in the attention.
    text: what thresholds are fitted to: a file, "-" for standard input, or a data set on the hub
        (`neurtransformer.text.load_blocks`). None is text that the dense model writes itself.
    device: where both networks compute: "cpu", "cuda" or "cuda:N".
    force: replace a run that stands at `out`.
    progress: is told how far the work is (`neurtransformer.progress.Progress`); by default nobody
        is.

    Returns a dict:

    - `run`: the folder, an absolute Path;
    - `model`, `attention`: the settings; `timesteps`, `coding`: the code of the feed-forward
      blocks; `attention_timesteps`, `attention_coding`: that of the attention;
    - `parameters`: the number of weights and thresholds;
    - `calibration_tokens`: the number of tokens that thresholds were fitted to;
    - `unseen_tokens`: the number of tokens, about a thousand, that the fit has not seen, on which
      both networks were compared; 0 if the text had no more. Only if it is not 0 there are also
      `ppl_ratio`, perplexity of the spiking model divided by that of the dense one,
      `cosine_similarity` of their last hidden states, a mean over tokens, and `token_agreement`,
      the share of tokens behind which both expect the same next one, 0 to 1;
    - `seconds`: the time it took.

    The dict and the recipe are noted in the run's report.json.

    Raises UserError for a model that cannot be had or converted, a wrong setting, a text that
    cannot be read, or a folder that may not be replaced.
    """
    from neurtransformer import runs
    from neurtransformer.dense import check, load_dense, locate
    from neurtransformer.device import device_of, placed
    from neurtransformer.folders import Place, new_folder
    from neurtransformer.recipe import load_recipe

    name, text = str(model), name_of(text)
    recipe = load_recipe(path_of(config), timesteps, attention=attention, coding=coding)
    check(locate(name))
    device_of(device)
    place = Place("run", name, path_of(out))
    with new_folder(place, force=force) as folder:
        from neurtransformer.measure.card import write_card
        from neurtransformer.measure.quality import counting_spikes
        from neurtransformer.measure.quality import evaluate as compare
        from neurtransformer.provenance import model_sha256, stamp, text_sha256
        from neurtransformer.spiking.calibrate import calibration_text, unseen_text
        from neurtransformer.spiking.convert import convert as spiking_form
        from neurtransformer.spiking.innate import first_token_of
        from neurtransformer.spiking.load import source_name
        from neurtransformer.spiking.neuron import snapping_anew
        from neurtransformer.spiking.shim import auto_map, write_shim

        started = time.monotonic()
        dense, tokenizer = load_dense(name)
        placed(dense, device)
        blocks = calibration_text(dense, tokenizer, text, recipe.calibration).to(dense.device)
        source = source_name(name)
        first = first_token_of(dense) if recipe.innate_first_token else None
        layers = dense.config.num_hidden_layers
        with progress.bar("calibrating", layers, "blocks", brief=True) as advance:
            spiking = spiking_form(
                dense,
                blocks,
                recipe.timesteps,
                source,
                on_block=lambda: advance(1, ""),
                coding=recipe.coding,
                attention=recipe.attention,
                attention_code=recipe.attention_code,
                digits=recipe.digits,
                first_token=first,
                limited=recipe.limited,
                shared=True,
            )
        measured: dict[str, Any] = {}
        unseen = unseen_text(dense, tokenizer, text, blocks)
        if unseen is not None:
            with snapping_anew(spiking), counting_spikes(spiking) as counter:
                measured = compare(spiking, dense, unseen.to(dense.device), counter)
        spiking.config.auto_map = auto_map(spiking)
        spiking.save_pretrained(folder)
        write_shim(folder, spiking)
        tokenizer.save_pretrained(folder)
        values = {
            "model": name,
            "timesteps": recipe.timesteps,
            "coding": recipe.coding,
            "attention": recipe.attention,
            "attention_timesteps": recipe.attention_code.timesteps,
            "attention_coding": recipe.attention_code.coding,
            "parameters": spiking.num_parameters(),
            "calibration_tokens": blocks.numel(),
            **{key: measured[key] for key in MEASURED if key in measured},
            "unseen_tokens": measured.get("tokens", 0),
            "seconds": time.monotonic() - started,
        }
        provenance = stamp(
            weights_sha256=model_sha256(spiking),
            teacher=source,
            teacher_sha256=spiking.config.dense_sha256,
            text_sha256=text_sha256(blocks),
            seed=0,
        )
        made = {**values, "text": text, "provenance": provenance}
        report = {"convert": made, "recipe": recipe.model_dump()}
        runs.write_json(folder / "report.json", report)
        write_card(folder)
    return {"run": place.made, **values}
