"""`simulate`: a netlist at work, what `neurtx simulate` does."""

from pathlib import Path
from typing import Any, Literal, cast

from neurtransformer.api.given import Named, check_choice, check_least, name_of, path_of
from neurtransformer.progress import SILENT, Progress


def simulate(
    netlist: Named = None,
    prompt: str | None = None,
    *,
    data: str | Path | None = None,
    backend: Literal["lava", "integer"] = "lava",
    tokens: int = 8,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Run a prompt, or drawings, through a netlist and compare every spike and state.

    netlist: the folder that `export` wrote for "loihi2". None is the last netlist that a command
        made from the current folder.
    prompt: the text to run, for a language model.
    data: the folder of Omniglot's archives, for a plastic transformer. Exactly one of `prompt` and
        `data` is given; the other is None.
    backend: "lava" compares Lava, in fixed point, with the integer model. "integer" compares the
        integer model's time steps with its counts, without Lava.
    tokens: how many are written behind the prompt, 1 or more.
    progress: is told how far the work is (`neurtransformer.progress.Progress`); by default nobody
        is.

    Returns a dict:

    - `netlist`: the folder, an absolute Path; `backend`: the setting;
    - `tokens`: how many tokens or drawings went through; `steps`: the time steps that this took, in
      all networks together;
    - `compared`: how many integers were compared; `mismatches`: how many differed;
      `max_abs_difference`: by how much at most; `first_mismatch`: where, None if nowhere;
    - `text`: what the backend writes behind the prompt, or the label that it gives the last
      drawing;
    - `same_text`, for a prompt: whether the integer model's counts lead to the same text;
    - `answer`, `ways`, `shots`, for drawings: the right label, the number of characters to tell
      apart, and of examples of each;
    - `seconds`: the time it all took; `integer_seconds`: what the integer model's counts took; for
      a prompt `backend_seconds`: what Lava took.

    A result with mismatches is returned like any other. For a prompt in Lava it is noted in the
    report.json of the run that the netlist was made from, if that is still there.

    Raises UserError if the netlist is damaged, the prompt does not fit, or Lava is missing; and if
    not exactly one of `prompt` and `data` is given.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError

    check_choice("backend", backend, ("lava", "integer"))
    check_least("tokens", tokens, 1)
    if (prompt is None) == (data is None):
        raise UserError("give --prompt TEXT, or --data FOLDER for a netlist that reads drawings")
    folder = runs.resolve("netlist", name_of(netlist))
    if backend == "lava":
        import neurtransformer.loihi.lava_compat  # noqa: F401  (says so if Lava is missing)
    if prompt is not None:
        values = _prompt(folder, prompt, backend, tokens, progress)
    else:
        values = _drawings(folder, cast("Path", path_of(data)), backend, progress)
    return {"netlist": folder, **values}


def _prompt(
    folder: Path,
    prompt: str,
    backend: Literal["lava", "integer"],
    tokens: int,
    progress: Progress,
) -> dict[str, Any]:
    from neurtransformer import runs
    from neurtransformer.loihi.netlist import read_text
    from neurtransformer.loihi.simulate import prompt_ids
    from neurtransformer.loihi.simulate import simulate as compare
    from neurtransformer.provenance import stamp

    loaded = read_text(folder)
    ids = prompt_ids(loaded, prompt, tokens)
    networks = len(loaded.manifest.networks)
    with progress.bar(f"simulating ({backend})", networks, "networks") as advance:
        values = compare(
            loaded, ids, backend, tokens=tokens, on_network=lambda name: advance(1, name)
        )
    if backend == "lava" and loaded.manifest.run is not None:
        run = Path(loaded.manifest.run)
        if runs.is_one("run", run):
            exported = stamp(weights_sha256=loaded.manifest.run_sha256)
            runs.update_report(run, "simulate", values, exported)
    return values


def _drawings(
    folder: Path, data: Path, backend: Literal["lava", "integer"], progress: Progress
) -> dict[str, Any]:
    """One episode of as many characters as the netlist has labels, or as there are."""
    from neurtransformer.errors import UserError
    from neurtransformer.icl import omniglot, plastic
    from neurtransformer.loihi.episode import simulate_episode
    from neurtransformer.loihi.netlist import read_plastic

    config = (loaded := read_plastic(folder)).model.config
    if config.side != omniglot.SIDE:
        raise UserError(f"{folder} reads drawings of other sides than {omniglot.SIDE}")
    with progress.status(f"simulating ({backend})") as note:
        note("reading drawings")
        # no matter which: what is asked here is whether both do the same
        drawings = omniglot.load_drawings(data)
        ways = min(config.ways, drawings.size[0])
        episode = omniglot.draw_episodes(*drawings.size, ways, 1, 1, seed=0)
        shown, labels = (x[0] for x in plastic.tokens(episode))
        ink = drawings.ink.reshape(-1, omniglot.SIDE, omniglot.SIDE)[shown]
        note(f"{len(ink)} drawings")
        values = simulate_episode(
            loaded, plastic.ink_counts(ink, config.timesteps), labels, backend
        )
    return {**values, "answer": str(episode.answer[0]), "ways": ways, "shots": 1}
