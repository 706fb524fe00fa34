"""What the fuzz tests share: a small netlist, copies of it to spoil, and what to expect of them.

Two promises. Whatever byte of a netlist is wrong, `netlist.read` refuses it or has read what was
written. And where the damage is signed, so that every hash agrees, it refuses the netlist or reads
another sound network, which runs: then only the checks of the content stand between the file and
the chip.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import LIMIT
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.layout import check, layout
from neurtransformer.loihi import netlist
from neurtransformer.loihi.simulate import prompt_ids, simulate

MANY = "NEURTX_FUZZ_EXAMPLES"
fuzz = settings(
    max_examples=int(os.environ.get(MANY, "30")),
    deadline=None,
    derandomize=MANY not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

CHIP, MANIFEST = "chip.safetensors", "manifest.json"
PROJECTION, TOKENIZER = "netx/h.0.mlp.c_fc.net", "tokenizer/tokenizer.json"
CONFIG = IntegerConfig(
    layers=1,
    width=8,
    heads=2,
    hidden=16,
    vocabulary=260,
    positions=16,
    timesteps=4,
    coding="rate",
    epsilon=1e-5,
    stream_bits=8,
)
HASHES = (
    "manifest.json is not as it was written",
    "the manifest says",
    "the file that the manifest describes",
)
"""What is said where a hash or a size is another one: of a signed folder, never."""

CPU_SECONDS, SECONDS, MEMORY = 10, 120, 2**29
"""More than reading takes here on a busy machine, and less than a hang or a bomb."""


def tensors_of(seed: int, config: IntegerConfig = CONFIG) -> dict[str, np.ndarray]:
    """Integers that fit the layout, biases and thresholds near the middle of their ranges."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, entry in layout(config).items():
        if entry.home == "synapses":
            x = 2 * rng.integers(-127, 128, entry.shape)
        elif name.endswith("shift") and not name.endswith("ssa.shift"):
            x = rng.integers(0, 12, entry.shape)
        else:
            x = rng.integers(max(entry.low, -9999), min(entry.high, 9999) + 1, entry.shape)
        found[name] = x.astype(entry.dtype)
    return found


def small_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>", unk_token="<end>"
    )


@contextlib.contextmanager
def spoilt(whole: Path) -> Iterator[Path]:
    """A copy to spoil. Its place is always the same, so that hypothesis may try again."""
    folder = whole.with_name("spoilt")
    shutil.copytree(whole, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def sign(folder: Path) -> None:
    """Make hashes and sizes agree with what stands in the files, so that only content tells."""
    path = folder / MANIFEST
    values = json.loads(path.read_bytes())
    for name in values["files"]:
        if (folder / name).is_file():
            values["files"][name] = netlist._entry(folder / name).model_dump()
    path.write_text(json.dumps(signed(values)))


def signed(values: Any) -> Any:
    """The manifest with the checksum it would have, where it is one at all."""
    try:
        manifest = netlist.Manifest.model_validate(values)
    except (ValidationError, RecursionError):
        return values
    return {**values, "checksum": netlist.checksum(manifest)}


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """No hang and no bomb: a limit on time and on memory that is not yet there."""

    def late(_number: int, _frame: FrameType | None) -> None:
        pytest.fail("it hangs")

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = resource.getrlimit(resource.RLIMIT_AS)
    before = [signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, memory[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def read(folder: Path) -> netlist.TextNetlist | None:
    """What was read, or None where it was refused as it should be."""
    try:
        with bounded():
            return netlist.read_text(folder)
    except UserError as error:
        _is_one_line(str(error), folder)
        return None


def _is_one_line(text: str, folder: Path) -> None:
    assert len(text.splitlines()) == 1 and text.isprintable(), text
    assert len(text) < 1000, text[:2000]
    assert str(folder) in text, text


def refused_for_its_content(folder: Path) -> None:
    """What was signed, and so by none of the hashes."""
    with pytest.raises(UserError) as caught, bounded():
        netlist.read_text(folder)
    _is_one_line(str(caught.value), folder)
    assert not any(words in str(caught.value) for words in HASHES), caught.value


def same(found: netlist.TextNetlist | None, original: netlist.TextNetlist) -> None:
    """Refused, or equal to what was written."""
    if found is None:
        return
    assert found.manifest == original.manifest
    assert found.model.tensors.keys() == original.model.tensors.keys()
    for name, x in original.model.tensors.items():
        assert np.array_equal(found.model.tensors[name], x), name
    assert found.tokenizer.get_vocab() == original.tokenizer.get_vocab()


def sound(found: netlist.TextNetlist | None) -> None:
    """Refused, or a network that runs and agrees with itself."""
    if found is None:
        return
    check(found.model.config, dict(found.model.tensors), pytest.fail)
    most = found.model.config.vocabulary - 1
    ids = [0, min(7, most), most]
    with bounded():
        values = simulate(found, ids, "integer")
        assert values["mismatches"] == 0 and values["same_text"], values
        fits(found, ids)
        try:
            ids = prompt_ids(found, "x y", 1)
        except UserError:  # another tokenizer may make nothing of it, or too much
            return
        simulate(found, ids, "integer")


def fits(found: netlist.TextNetlist, ids: list[int]) -> None:
    """No spike and no state of any time step leaves 24 bits."""
    x = np.array(ids)
    for network in found.manifest.networks:
        trace = found.model.networks[network.name].steps(x, network.phase, network.slots)
        for name, values in trace.items():
            assert np.abs(values).max() <= LIMIT, f"{network.name}.{name}"
        x = trace[network.result][:, -1]


def refused_by_the_command(neurtx: Any, folder: Path) -> None:
    """In one line that names the netlist."""
    words = (str(folder), "--prompt", "x", "--backend", "integer", "--json")
    assert str(folder) in neurtx("simulate", *words).mistake()


# --- JSON ---

HUGE = 10**30
WORDS = st.sampled_from(
    ["", "rate", "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000, "a\nb", "\x1b[31m", "é"]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**24, 2**31, 2**63, HUGE, -HUGE, 1024]),
    st.floats(),
    WORDS,
    st.text(st.characters(), max_size=9),
)
KEYS = WORDS | st.text(st.characters(), max_size=9)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
REMOVE, RENAME, DOUBLE = object(), object(), object()
CHANGES = VALUES | st.sampled_from([REMOVE, RENAME, DOUBLE])


def places(values: Any, above: tuple = ()) -> list[tuple]:
    """The path to every node of a JSON document, but for the document itself."""
    if isinstance(values, dict):
        inner = list(values.items())
    elif isinstance(values, list):
        inner = list(enumerate(values))
    else:
        return [above]
    deeper = [place for key, value in inner for place in places(value, (*above, key))]
    return ([above] if above else []) + deeper


def put(values: Any, place: tuple, new: Any, key: str) -> None:
    at = values
    for part in place[:-1]:
        at = at[part]
    last = place[-1]
    if new is REMOVE:
        del at[last]
    elif new is RENAME and isinstance(at, dict):
        at[key] = at.pop(last)
    elif new is DOUBLE and isinstance(at, list):
        at.insert(last, at[last])
    elif new is not RENAME and new is not DOUBLE:
        at[last] = new


def alter(values: dict[str, Any], data: st.DataObject) -> None:
    """Change one node of the document, whichever it is."""
    # by its first part first, or the many nodes of the networks would have it all
    part = data.draw(st.sampled_from(sorted(values)))
    place = data.draw(st.sampled_from([p for p in places(values) if p[0] == part]))
    new = data.draw(CHANGES)
    put(values, place, new, data.draw(KEYS))
