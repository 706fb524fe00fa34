"""Models that do not read English, or know no beginning of a text, go the whole way too."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from neurtransformer import text
from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.text import UnreadableText, load_blocks, prompt_ids, write_text

NOTES = "\u2460\u2461\u2462"
CHINESE = "你好世界的一是了我不人在他有这"
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHINESE]


def letters(signs: str, **special: str) -> PreTrainedTokenizerFast:
    """A token for each sign, and an error for every other."""
    vocabulary = {sign: i for i, sign in enumerate([*special.values(), *signs])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, **special))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def notes() -> PreTrainedTokenizerFast:
    """A BPE that drops what it does not know."""
    vocabulary = {sign: i for i, sign in enumerate(["<s>", *NOTES])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def model_of(vocabulary: int, **config: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **{**sizes, **config})).eval()


@pytest.fixture(scope="module")
def dna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four letters; the numbers of beginning and end are those of an English GPT-2."""
    folder = tmp_path_factory.mktemp("models") / "dna"
    model_of(4).save_pretrained(folder)
    letters("ACGT").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("tokenizer", "known", "complaint"),
    [
        (letters("ACGT"), "GATTACA" * 9, "cannot read CPython's text"),
        (letters("ab", unk_token="?"), "abba" * 9, "knows [0-9]+% of CPython's text"),
        (notes(), NOTES * 9, "knows 0% of CPython's text"),
    ],
)
def test_text_that_a_tokenizer_does_not_know(
    tmp_path: Path, tokenizer: Any, known: str, complaint: str
) -> None:
    with pytest.raises(UnreadableText, match=complaint) as caught:
        load_blocks(None, tokenizer, 16, split="train", limit_tokens=64)
    assert "\n" not in str(caught.value)
    path = tmp_path / "known"
    path.write_text(known)
    blocks = load_blocks(str(path), tokenizer, 16, split="train")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    expected = [*start, *tokenizer.encode(known)]
    assert blocks.flatten().tolist() == expected[: blocks.numel()]


def test_a_document_of_nothing_known_has_no_beginning(tmp_path: Path) -> None:
    """Or the perplexity would be that of beginnings after beginnings."""
    path = tmp_path / "documents"
    path.write_text("\n<|endoftext|>\n".join(["no", NOTES * 9, "no", "no", NOTES]))
    blocks = load_blocks(str(path), notes(), 99, split="train")
    assert blocks.tolist() == [[0, *[1, 2, 3] * 9, 0, 1, 2, 3]]


def test_a_prompt_of_nothing_known_is_one_line() -> None:
    assert prompt_ids(notes(), "no" + NOTES) == [1, 2, 3]
    for tokenizer, prompt, complaint in (
        (notes(), "no", "no token for any of the prompt"),
        (letters("ACGT"), "acgt", "cannot read the prompt"),
        (letters("ACGT"), "", "prompt is empty"),
    ):
        with pytest.raises(UserError, match=complaint):
            prompt_ids(tokenizer, prompt)


def test_a_tokenizer_of_one_token_more_than_the_model_is_refused(tmp_path: Path) -> None:
    letters("ACGT").save_pretrained(tmp_path)
    model_of(4).save_pretrained(tmp_path)
    assert len(load_dense(str(tmp_path))[1]) == 4
    model_of(3).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="token number 3, but the model has 3 tokens"):
        load_dense(str(tmp_path))


def test_a_chinese_gpt2_with_berts_tokenizer(tmp_path: Path) -> None:
    model_of(len(BERT)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(BERT))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    model, tokenizer = load_dense(str(tmp_path))
    assert model.config.bos_token_id is None
    # what it puts behind a text would end what is to go on
    assert prompt_ids(tokenizer, "你好") == [2, 5, 6]
    assert write_text(model, 2, 8, 0).shape == (2, 8)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="no tokens but special ones"):
        load_dense(str(tmp_path))


SETTINGS: list[dict[str, Any]] = [
    {"return_dict_in_generate": True, "output_scores": True},
    {"stop_strings": ["\n"]},
    {"num_beams": 4, "no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.9, "top_p": 0.3, "temperature": 0.1, "min_p": 0.5},
    {"max_length": 3, "max_time": 1e-9},
    {"num_return_sequences": 3, "do_sample": True},
    {"forced_eos_token_id": 3, "bad_words_ids": [[1]], "suppress_tokens": [1, 2]},
    {"use_cache": False, "cache_implementation": "quantized"},
    {"prompt_lookup_num_tokens": 3},
    {"guidance_scale": 2.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_our_text_is_drawn_our_way(dna: Path, settings: dict[str, Any]) -> None:
    model, _ = load_dense(str(dna))
    plain = write_text(model, 3, 20, seed=1)
    model.generation_config = GenerationConfig(**settings)
    assert write_text(model, 3, 20, seed=1).equal(plain)
    assert model.generation_config.to_diff_dict().items() >= settings.items()


@pytest.mark.parametrize("settings", SETTINGS)
def test_generate_draws_our_way(tiny_run: Path, settings: dict[str, Any]) -> None:
    from neurtransformer.generate import generate
    from neurtransformer.spiking.load import load_run

    model, tokenizer = load_run(tiny_run)
    ways = {"backend": "torch", "seed": 1}
    plain = generate(model, tokenizer, "The end", 8, **ways)  # type: ignore[arg-type]
    model.generation_config = GenerationConfig(**settings, eos_token_id=[0])
    assert generate(model, tokenizer, "The end", 8, **ways) == plain  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ends", "start"),
    [
        ({"bos_token_id": 2, "eos_token_id": 1}, [2]),
        ({"bos_token_id": None, "eos_token_id": [9, 3]}, [3]),
        ({"bos_token_id": None, "eos_token_id": None}, range(4)),
        ({"bos_token_id": 50256, "eos_token_id": 50256}, range(4)),
        ({"bos_token_id": 0, "eos_token_id": [0, 1, 2, 3]}, [0]),
    ],
)
def test_own_text_begins_somewhere(ends: dict[str, Any], start: Any) -> None:
    blocks = write_text(model_of(4, **ends), 40, 16, seed=0)
    assert blocks.shape == (40, 16)
    assert set(blocks[:, 0].tolist()) == set(start)


def test_own_text_is_drawn_from_all_tokens_as_the_model_has_them() -> None:
    """Second tokens of documents of two, against the softmax without the token that ends a text."""
    model, documents = model_of(80, n_positions=2, bos_token_id=3, eos_token_id=5), 4000
    with torch.no_grad():
        model.transformer.wte.weight.mul_(10)
        logits = model(torch.tensor([[3]])).logits[0, -1].double()
    logits[5] = -torch.inf
    expected = documents * logits.softmax(-1)
    first, second = write_text(model, documents, 2, seed=0).unbind(1)
    assert bool((first == 3).all())
    found = second.bincount(minlength=80)
    assert expected.max() > 4 * expected[expected > 0].min()
    assert bool(((found - expected).abs() <= 5 * expected.sqrt()).all())


def test_generation_settings_reach_the_run(dna: Path, tmp_path: Path) -> None:
    from neurtransformer.spiking.convert import convert
    from neurtransformer.spiking.load import load_run

    model, tokenizer = load_dense(str(dna))
    model.generation_config = GenerationConfig(do_sample=True, top_k=7, eos_token_id=[1, 2])
    spiking = convert(model, write_text(model, 2, 16, 0), 4, str(dna))
    spiking.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_run(tmp_path)[0].generation_config
    assert (loaded.top_k, loaded.eos_token_id) == (7, [1, 2])


def test_integers_of_a_tiny_vocabulary_write(dna: Path) -> None:
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.spiking.convert import convert

    model, _ = load_dense(str(dna))
    integer = IntegerGPT2.from_spiking(convert(model, write_text(model, 2, 16, 0), 4, str(dna)))
    start = torch.tensor([[1]])
    assert integer.generate(start, 9, top_k=40).shape == (1, 10)
    assert integer.generate(start, 9, top_k=40, stop=[0, 1, 2, 3]).shape == (1, 2)


def test_the_whole_way_of_a_model_of_dna(
    dna: Path, tmp_path: Path, neurtx: Callable[..., Any]
) -> None:
    (tmp_path / "dna.txt").write_text("GATTACA" * 40)
    (tmp_path / "recipe.yaml").write_text(
        "calibration: {tokens: 64, block: 16}\nfinetune: {block: 16, batch: 1, self_written: 3}\n"
    )
    done = neurtx("convert", str(dna), "--out", "run", "--config", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    done = neurtx("finetune", "run", "--steps", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "--text" in neurtx("eval", "run").mistake()
    known = ("--text", "dna.txt", "--limit", "64", "--json")
    assert json.loads(neurtx("eval", "run", *known).stdout)["tokens"] == 64

    done = neurtx("export", "run", "--target", "loihi2", "--out", "net", "--json")
    assert done.returncode == 0, done.stderr
    assert "not measured" in done.stderr
    assert "ppl_integer" not in json.loads(done.stdout)
    done = neurtx(
        *("export", "run", "--target", "loihi2", "--out", "net", "--force", "--json"),
        *("--text", "dna.txt"),
    )
    assert 0.9 < json.loads(done.stdout)["ppl_ratio_to_spiking"] < 1.1
    (tmp_path / "english.txt").write_text("no letters of DNA")
    refused = ("export", "run", "--target", "loihi2", "--out", "net2", "--text", "english.txt")
    assert "cannot read english.txt" in neurtx(*refused).mistake()
    assert not (tmp_path / "net2").exists()

    way = ("--prompt", "GATT", "--tokens", "2")
    done = neurtx("simulate", "net", *way, "--backend", "integer", "--json")
    assert json.loads(done.stdout)["mismatches"] == 0, done.stderr
    for backend in ("torch", "integer"):
        done = neurtx("generate", "run", *way, "--backend", backend)
        assert done.stdout.startswith("GATT"), done.stderr
    assert neurtx("icl", "induction", "run", *known).returncode == 0


def test_text_has_no_home_of_nobody(nano_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no text file"):
        text.load_blocks("~nosuchuser/text", nano_tokenizer, 8, split="train")


@pytest.mark.parametrize("tidies", [False, True])
def test_text_is_told_as_its_tokens_come(nano_tokenizer: Any, tidies: bool) -> None:
    """Whole characters alone, and in the end all of it."""
    from neurtransformer.generate import Teller

    tokenizer = copy.deepcopy(nano_tokenizer)
    tokenizer.clean_up_tokenization_spaces = tidies
    text = "The sea , it was n't 日本 🦜 ends\ufffd"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    pieces: list[str] = []
    teller = Teller(tokenizer, pieces.append)
    teller.put(ids[:, :2])
    for token in ids[0, 2:]:
        teller.put(token[None])
        assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert (len(pieces) > 8) != tidies
    teller.end()
    assert "".join(pieces) == teller.text() == tokenizer.decode(ids[0])
    assert tidies or "".join(pieces) == text


@pytest.mark.parametrize("backend", ["torch", "integer"])
def test_generate_tells_what_it_returns(tiny_run: Path, backend: str) -> None:
    from neurtransformer.generate import generate
    from neurtransformer.spiking.load import load_run

    model, tokenizer = load_run(tiny_run)
    pieces: list[str] = []
    text = generate(model, tokenizer, "The end", 12, backend=backend, seed=1, on_text=pieces.append)
    assert "".join(pieces) == text and len(pieces) > 3
