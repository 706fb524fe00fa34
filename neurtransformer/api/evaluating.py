"""`evaluate`: a run beside its dense model, what `neurtx eval` does."""

import logging
from pathlib import Path
from typing import Any, Literal

from neurtransformer.api.given import Named, check_choice, check_least, name_of
from neurtransformer.progress import SILENT, Progress

log = logging.getLogger(__name__)

BUCKETS = 16
"""Of positions, for the report's picture."""


def evaluate(
    run: Named = None,
    *,
    text: str | Path | None = None,
    limit: int = 8192,
    block: int | None = None,
    mode: Literal["counts", "steps"] = "counts",
    device: str = "cpu",
    dtype: str = "float32",
    teacher: str | Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Compare a run with the dense model that it was made from, on the same tokens.

    run: the folder of a run, or the name of one that ships with the package or is on the hub. None
        is the last run that a command made from the current folder.
    text: what is read: a file, "-" for standard input, or a data set on the hub. None is the
        held-out part of CPython's text.
    limit: how many tokens are read at most, 2 or more.
    block: tokens of one text, 2 or more. None is the model's context, 1024 at most.
    mode: "counts" computes each neuron's spike count at once. "steps" simulates every time step
        with SpikingJelly's neurons, which is slower and gives equal numbers.
    device: where both networks compute: "cpu", "cuda" or "cuda:N".
    dtype: the type of the weights of both networks: "float32", "bfloat16" or "float16".
    teacher: the dense model, a name or a folder, if it is not where it was or is to be another one.
        None is the one that the run remembers.
    progress: is told how far the work is (`neurtransformer.progress.Progress`); by default nobody
        is.

    Returns a dict:

    - `run`: the folder, an absolute Path; `mode`, `dtype`, `text`: the settings;
    - `tokens`: how many were read;
    - `ppl_dense`, `ppl_spiking`: perplexities; `ppl_ratio`: the latter divided by the former;
    - `cosine_similarity`, `cosine_similarity_logits`: of the last hidden states and of the logits
      of both networks, means over tokens, 1 where they are equal;
    - `token_agreement`: the share of tokens behind which both expect the same next one, 0 to 1;
    - `timesteps`: T of the feed-forward blocks;
    - `spikes_per_token`: of all neurons of all layers; `mean_spike_count` and `mean_spike_rate`:
      spikes of a neuron per token and per time step, means over neurons; `spike_rate_by_layer`:
      the latter for each layer of neurons by its name;
    - `attention_energy_reduction_percent`, `model_energy_reduction_percent`: by how many per cent
      the arithmetic of the attention blocks and of the whole model is estimated to need less energy
      than the dense model's;
    - `neurobench`: the metrics of that benchmark under its own names
      (`neurtransformer.measure.neurobench.neurobench`);
    - `loss_by_position`: the mean loss of `dense` and `spiking` in nats per token, for each of 16
      ranges of positions, whose middle is `position`; texts are twice as long as a block here;
    - `race`, `raster`, `attention_maps`: sketches of one sentence, which `neurtx report` draws
      (docs/file-formats.md); each is left out where there is nothing to draw.

    All of it is noted in the run's report.json too, unless the run ships with the package or is the
    hub's.

    Raises UserError if the run, the text or the dense model cannot be had, for a wrong setting, and
    for "steps" if SpikingJelly is missing.
    """
    from neurtransformer import runs
    from neurtransformer.device import device_of, dtype_of, placed

    check_choice("mode", mode, ("counts", "steps"))
    check_least("limit", limit, 2)
    check_least("block", block, 2)
    folder, text = runs.resolve("run", name_of(run)), name_of(text)
    if mode == "steps":
        from neurtransformer.spiking.coding import soft_reset_neuron

        soft_reset_neuron()  # says so if SpikingJelly is missing
    device_of(device)
    dtype_of(dtype)

    from neurtransformer.measure.card import refresh_card
    from neurtransformer.measure.energy import estimate
    from neurtransformer.measure.maps import attention_maps
    from neurtransformer.measure.neurobench import neurobench
    from neurtransformer.measure.position import doubled, loss_by_position
    from neurtransformer.measure.quality import counting_spikes
    from neurtransformer.measure.quality import evaluate as compare
    from neurtransformer.measure.race import one_race
    from neurtransformer.measure.raster import raster
    from neurtransformer.provenance import model_sha256, stamp, text_sha256
    from neurtransformer.spiking.load import load_run, teacher_of
    from neurtransformer.text import BLOCK, load_blocks

    model, tokenizer = load_run(folder)
    length = min(block or BLOCK, model.config.context)
    if block is not None and block > length:
        log.warning("blocks have %d tokens, not %d: that is the model's context", length, block)
    blocks = load_blocks(text, tokenizer, length, split="heldout", limit_tokens=limit)
    found = teacher_of(folder, model, name_of(teacher))
    provenance = stamp(
        weights_sha256=model_sha256(model),
        teacher=found.source,
        teacher_sha256=found.sha256,
        text_sha256=text_sha256(blocks),
    )
    dense = placed(found.dense, device, dtype)
    placed(model, device, dtype)
    blocks = blocks.to(model.device)
    long = doubled(blocks)
    total = blocks.numel() + long.numel()
    with progress.bar(f"evaluating ({mode})", total, "tokens") as advance:
        model.steps = mode == "steps"
        with counting_spikes(model) as counter:
            values = compare(
                model, dense, blocks, counter, on_tokens=lambda tokens: advance(tokens, "")
            )
        model.steps = False  # equal, and what is a witness above would only take longer here
        curve = loss_by_position(
            model, dense, long, BUCKETS, on_tokens=lambda tokens: advance(tokens, "")
        )
    energy = estimate(model, counter)
    saved = {
        f"{part}_energy_reduction_percent": energy[part]["reduction_percent"]
        for part in ("attention", "model")
    }
    values = {
        "mode": mode,
        "dtype": dtype,
        "text": text,
        "block": length,
        **values,
        **saved,
        "neurobench": neurobench(model, counter),
        "loss_by_position": curve,
    }
    sketches = {
        "race": one_race(model, dense, tokenizer),
        "raster": raster(model, tokenizer),
        "attention_maps": attention_maps(model, dense, tokenizer),
    }
    values |= {name: sketch for name, sketch in sketches.items() if sketch is not None}
    runs.update_report(folder, "eval", values, provenance)
    refresh_card(folder)
    return {"run": folder, **values}
