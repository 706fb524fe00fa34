"""Mix files of text into one that `neurtx finetune --text` takes.

    python scripts/pretrain/mix_text.py OUT --characters N --text FILE=SHARE ... [--cpython SHARE]

OUT is passages of PASSAGE characters, each a document of its own, drawn at random from the files
in the shares given; the same seed draws the same passages.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from neurtransformer.text import python_text
from pretrain_data import DOCUMENT, documents, parse_mixture

PASSAGE = 4000
"""About two blocks of 512 tokens of gpt2-nano's tokenizer."""


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--characters", type=int, required=True)
@click.option("--text", "texts", multiple=True, help="FILE=SHARE; may be repeated.")
@click.option("--cpython", default=0.0, show_default=True, help="Share of CPython's own text.")
@click.option("--seed", default=0, show_default=True)
def main(out: Path, characters: int, texts: tuple[str, ...], cpython: float, seed: int) -> None:
    """Write the mixture to OUT."""
    files, shares = parse_mixture(texts)
    sources = [documents(file) for file in files]
    if cpython:
        sources.append(list(python_text("train")))
        shares = np.append(shares * (1 - cpython), cpython)
    random = np.random.default_rng(seed)
    # a long document is drawn from more often than a short one
    sizes = [np.array([len(text) for text in source]) for source in sources]
    with out.open("w", encoding="utf-8") as file:
        for _ in range(characters // PASSAGE):
            source = random.choice(len(sources), p=shares)
            number = random.choice(len(sizes[source]), p=sizes[source] / sizes[source].sum())
            text = sources[source][number]
            # from the start of a line on
            begin = text.rfind("\n", 0, int(random.integers(len(text)))) + 1
            file.write(f"{text[begin : begin + PASSAGE].strip()}\n{DOCUMENT}\n")


if __name__ == "__main__":
    main()
