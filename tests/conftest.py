"""What several test files need."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# two test workers on two cores: more threads would only get in each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.pop("NEURTX_HOME", None)

settings.register_profile("neurtx", deadline=None, max_examples=50)
settings.load_profile("neurtx")

pytest.register_assert_rewrite("fuzzing")

WITHOUT_LAVA = "NEURTX_TEST_WITHOUT_LAVA"
"""Set to 1, the environment variable that lets the tests that need Lava be skipped."""

NANO = Path(__file__).parent.parent / "neurtransformer" / "models" / "gpt2-nano"


@pytest.fixture(scope="session")
def lava() -> None:
    """Lava, without which the central claim is not tested: its tests fail then and are not skipped,
    but for those who ask for that."""
    if os.environ.get(WITHOUT_LAVA) == "1":
        pytest.skip(f"{WITHOUT_LAVA} is set")
    import neurtransformer.loihi.lava_compat  # noqa: F401


@pytest.fixture(scope="session")
def nano_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(NANO)


@pytest.fixture(scope="session")
def tiny_dense_folder(tmp_path_factory: pytest.TempPathFactory, nano_tokenizer: Any) -> Path:
    """A random GPT-2 of 2 layers, 64 wide, 2 heads of 32, context 64, with the nano tokenizer.

    For reading only: `copy_of` makes one to spoil.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(nano_tokenizer),
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    nano_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory, nano_tokenizer: Any) -> Path:
    """A random Llama of 2 layers, 64 wide, 4 heads of 16 that share 2 of keys and values, context
    64; large weights, for which heads prefer some positions. For reading only, as above."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(nano_tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    nano_tokenizer.save_pretrained(folder)
    return folder


def words(*shape: int, seed: int = 0) -> Any:
    """Random tokens of the nano tokenizer, int64, none of them the one that begins a text."""
    import torch

    return torch.randint(1, 4096, shape, generator=torch.Generator().manual_seed(seed))


def likeness(a: Any, b: Any) -> float:
    """The mean cosine similarity of two tensors of logits."""
    import torch

    return float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())


def _converted(folder: Path, dense_folder: Path, tokenizer: Any, attention: str) -> Path:
    """`folder`, with what `neurtx convert --timesteps 4` writes for a kind of attention."""
    import torch

    from neurtransformer import runs
    from neurtransformer.dense import load_dense
    from neurtransformer.recipe import load_recipe
    from neurtransformer.spiking.convert import convert

    recipe = load_recipe(timesteps=4, attention=attention)
    dense, _ = load_dense(str(dense_folder))
    tokens = torch.randint(
        dense.config.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0)
    )
    spiking = convert(
        dense,
        tokens,
        recipe.timesteps,
        str(dense_folder),
        coding=recipe.coding,
        attention=recipe.attention,
        attention_code=recipe.attention_code,
    )
    spiking.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    values = {
        "model": str(dense_folder),
        "timesteps": recipe.timesteps,
        "parameters": spiking.num_parameters(),
        "calibration_tokens": tokens.numel(),
        "seconds": 0.1,
        "text": None,
    }
    runs.write_json(folder / "report.json", {"convert": values, "recipe": recipe.model_dump()})
    return folder


def _exported(folder: Path, run: Path, tokenizer: Any) -> Path:
    """`folder`, with a netlist of `run` that sends binary spikes."""
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.loihi import netlist
    from neurtransformer.spiking.load import load_run

    netlist.write(folder, IntegerGPT2.from_spiking(load_run(run)[0]), tokenizer, "binary")
    return folder


@pytest.fixture(scope="session")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_dense_folder: Path, nano_tokenizer: Any
) -> Path:
    """A run as `neurtx convert` writes it: the tiny dense model, linear attention, T = 4,
    nothing trained.

    For reading only: `copy_of` makes one to spoil.
    """
    folder = tmp_path_factory.mktemp("runs") / "tiny-spiking"
    return _converted(folder, tiny_dense_folder, nano_tokenizer, "linear")


@pytest.fixture(scope="session")
def tiny_race_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_dense_folder: Path, nano_tokenizer: Any
) -> Path:
    """The same with the default attention, a race, which is phase coded. For reading only."""
    folder = tmp_path_factory.mktemp("runs") / "tiny-race"
    return _converted(folder, tiny_dense_folder, nano_tokenizer, "ttfs")


FOR_READING = ("tiny_run", "tiny_race_run", "tiny_netlist", "tiny_race_netlist", "whole")


@pytest.fixture(autouse=True)
def _unspoilt(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that changes what all share would make another one fail, some day."""

    def state() -> dict[Path, tuple[int, int]]:
        files = [path for folder in folders for path in sorted(folder.rglob("*"))]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    shared = [name for name in FOR_READING if name in request.fixturenames]
    folders: list[Path] = [request.getfixturevalue(name) for name in shared]
    before = state()
    yield
    assert state() == before, f"{' or '.join(shared)} was changed: use a copy"


@pytest.fixture
def one_of_each(
    tmp_path: Path,
    tiny_dense_folder: Path,
    tiny_run: Path,
    tiny_netlist: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with a dense model, a run, a netlist and a text, copies to spoil; and no hub."""
    from neurtransformer import hub

    for name, source in (
        ("dense", tiny_dense_folder),
        ("run", tiny_run),
        ("netlist", tiny_netlist),
    ):
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    return tmp_path


@pytest.fixture(params=["ttfs", "linear"])
def either_run(request: pytest.FixtureRequest, tiny_run: Path, tiny_race_run: Path) -> Path:
    """A run of each kind of attention, one after the other. For reading only."""
    return tiny_race_run if request.param == "ttfs" else tiny_run


@pytest.fixture(scope="session")
def tiny_netlist(
    tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, nano_tokenizer: Any
) -> Path:
    """A netlist of the tiny run, with binary spikes. For reading only, as above."""
    return _exported(tmp_path_factory.mktemp("netlists"), tiny_run, nano_tokenizer)


@pytest.fixture(scope="session")
def tiny_race_netlist(
    tmp_path_factory: pytest.TempPathFactory, tiny_race_run: Path, nano_tokenizer: Any
) -> Path:
    """The same of the run whose attention is a race."""
    return _exported(tmp_path_factory.mktemp("netlists"), tiny_race_run, nano_tokenizer)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A netlist of a network as small as can be: reading it takes a moment. For reading only:
    `fuzzing.spoilt` makes a copy to spoil."""
    from fuzzing import CONFIG, small_tokenizer, tensors_of
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.loihi import netlist

    folder = tmp_path_factory.mktemp("fuzz") / "whole"
    folder.mkdir()
    netlist.write(folder, IntegerGPT2(CONFIG, tensors_of(0)), small_tokenizer(), "binary")
    return folder


@pytest.fixture(scope="session")
def original(whole: Path) -> Any:
    from neurtransformer.loihi import netlist

    return netlist.read_text(whole)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A function that copies a folder to a place where a test may spoil it."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-of-{folder.name}"))

    return copy


@dataclass
class Done:
    """How a command ended. words: what was typed."""

    returncode: int
    stdout: str
    stderr: str
    words: tuple[str, ...] = ()

    def mistake(self) -> str:
        """The single line of a caller's mistake, which is a JSON object too if that is wanted."""
        assert self.returncode == 2, self.stderr
        assert self.stderr.startswith("neurtx: error: "), self.stderr
        assert self.stderr.count("\n") == 1, self.stderr
        line = self.stderr.removeprefix("neurtx: error: ").removesuffix("\n")
        if "--json" in self.words:
            assert json.loads(self.stdout) == {"error": line, "exit_code": 2}
        else:
            assert self.stdout == ""
        return self.stderr


def commands() -> dict[str, Any]:
    """Every command by its whole path, such as "icl omniglot"; a group is none."""
    import click

    from neurtx.main import neurtx

    def below(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from below(command, f"{path}{name} ")
            else:
                yield f"{path}{name}", command

    return dict(below(neurtx, ""))


@pytest.fixture
def neurtx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs a command in an empty folder, in this process: starting one takes seconds."""
    from neurtx.main import main

    monkeypatch.chdir(tmp_path)
    for change in ("output.quiet", "process.open_streams", "process.catch_signals"):
        monkeypatch.setattr(f"neurtx.{change}", lambda: None)

    def call(*args: str) -> Done:
        monkeypatch.setattr("sys.argv", ["neurtx", *args])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return Done(int(end.value.code or 0), out, err, args)

    return call


@pytest.fixture
def neurtx_process(tmp_path: Path) -> Callable[..., Done]:
    """The same in a process of its own, libraries' chatter and all."""

    def call(*args: str) -> Done:
        command = [sys.executable, "-m", "neurtx.main", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        return Done(done.returncode, done.stdout, done.stderr, args)

    return call


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a small disk with the options given."""
    place = tmp_path / "disk"

    def mount(options: str) -> Path:
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            subprocess.run(words, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no small disk may be mounted here: {error}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)
