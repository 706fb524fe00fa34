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

    model: a short name (`neurtransformer.dense.KNOWN`), a hub id, a local folder or a GGUF file.
    out: the folder to write; None picks a free name below ./runs. force: replace a run that is
    there already. config: a YAML recipe; what it leaves out is as in configs/default.yaml.
    attention: "ttfs" or "linear". coding: one code for the whole network. timesteps: T of the code.
    text: what the thresholds are fitted to, see `neurtransformer.text.load_blocks`; None lets the
    dense model write it. device: where both networks compute, "cpu", "cuda" or "cuda:N".

    Returns the folder as `run`, the settings, and how near the spiking model is to the dense one
    on about a thousand tokens that the fit has not seen: `ppl_ratio`, `cosine_similarity` and
    `token_agreement` (left out if the text had no more tokens).

    Raises UserError for a model that cannot be converted, a wrong setting, or a folder that may not
    be replaced.
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
