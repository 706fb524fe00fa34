"""The spiking model where transformers uses it: generate, pipelines, Trainer, arguments, dtypes.

All text is that of runs that ship, one of each attention: a random model repeats itself whatever it
remembers.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neurtransformer.dense import load_dense
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.measure.quality import counting_spikes
from neurtransformer.recipe import Code
from neurtransformer.runs import BUNDLED
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.model import (
    CACHE,
    SpikingGPT2LMHeadModel,
    SpikingLanguageModel,
    SSAState,
)
from neurtransformer.text import load_blocks

SHIPPED = "gpt2-nano-spiking", "gpt2-nano-linear"
PROMPT = "The old man went to the"
GREEDY = {"do_sample": False, "max_new_tokens": 14}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sampled": {"do_sample": True, "max_new_tokens": 12, "top_k": 40},
    "beams": {"do_sample": False, "max_new_tokens": 8, "num_beams": 3},
}


def shipped(folder: Path, dtype: Any = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.fixture(scope="module", params=SHIPPED)
def folder(request: pytest.FixtureRequest) -> Path:
    return BUNDLED / request.param


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return shipped(folder)


@pytest.fixture
def model(loaded: Any) -> Iterator[Any]:
    """A run that ships, in float32 and eval mode."""
    yield loaded
    loaded.eval()


@pytest.fixture(scope="module")
def prompt(nano_tokenizer: Any) -> Tensor:
    return nano_tokenizer(PROMPT, return_tensors="pt")["input_ids"]


def written(model: Any, ids: Tensor, **settings: Any) -> Tensor:
    """The new tokens of `generate`."""
    torch.manual_seed(0)
    settings.setdefault("attention_mask", torch.ones_like(ids))
    sequences = model.generate(ids, pad_token_id=0, **settings)
    return sequences[:, ids.shape[1] :]


@pytest.fixture(scope="module")
def without_state(loaded: Any, prompt: Tensor) -> Callable[[str], Tensor]:
    """The new tokens that each way of `WAYS` writes without a state, in eval mode."""
    return cache(lambda way: written(loaded.eval(), prompt, use_cache=False, **WAYS[way]))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("way", WAYS)
def test_text_is_the_same_with_and_without_the_state(
    model: Any, prompt: Tensor, without_state: Callable[[str], Tensor], way: str, mode: str
) -> None:
    model.train(mode == "train")
    with_state = written(model, prompt, use_cache=True, **WAYS[way])
    assert model.training is (mode == "train")
    plain = without_state(way)
    assert torch.equal(with_state, plain)
    assert len(set(plain[0].tolist())) > 5, "a text that repeats itself proves nothing"
    if way == "greedy":  # no part of `generate` is believed
        model.eval()
        best = model(torch.cat([prompt, plain], 1), use_cache=False).logits.argmax(-1)
        assert torch.equal(best[:, prompt.shape[1] - 1 : -1], plain)


@pytest.mark.parametrize("way", ["greedy", "beams"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_batch_with_left_padding_writes_what_each_prompt_alone_does(
    model: Any, nano_tokenizer: Any, way: str, mode: str
) -> None:
    texts = [PROMPT, "In the", "She said that the war in the north of the country was"]
    tokenizer = nano_tokenizer.__class__.from_pretrained(BUNDLED / SHIPPED[0], padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    settings = {**WAYS[way], "max_new_tokens": 8}
    model.train(mode == "train")
    together = written(
        model, batch["input_ids"], **settings, attention_mask=batch["attention_mask"]
    )
    alone = [
        written(model, tokenizer(text, return_tensors="pt")["input_ids"], **settings)[0]
        for text in texts
    ]
    for row, single in zip(together, alone, strict=True):
        assert torch.equal(row[: len(single)], single)
    assert len({tuple(row.tolist()) for row in together}) == len(texts)


def test_text_goes_on_from_a_state_that_was_returned(model: Any, prompt: Tensor) -> None:
    whole = written(model, prompt, **GREEDY)
    first = model.generate(
        prompt, do_sample=False, max_new_tokens=5, pad_token_id=0, return_dict_in_generate=True
    )
    state = first[CACHE]
    assert isinstance(state, SSAState) and state.get_seq_length() == prompt.shape[1] + 4
    rest = written(model, first.sequences, do_sample=False, max_new_tokens=9, past_key_values=state)
    assert torch.equal(torch.cat([first.sequences[:, prompt.shape[1] :], rest], 1), whole)
    chunked = written(model, prompt, prefill_chunk_size=2, **GREEDY)
    assert torch.equal(chunked, whole)


def test_pipeline_writes_the_same(
    model: Any, prompt: Tensor, nano_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import pipeline

    writer = pipeline("text-generation", model=model, tokenizer=nano_tokenizer)
    (answer,) = writer(PROMPT, return_full_text=False, **GREEDY)
    new = written(model, prompt, **GREEDY)
    assert answer["generated_text"] == nano_tokenizer.decode(new[0])
    assert "not supported" not in caplog.text


@pytest.mark.parametrize("lost", ["between tokens", "key-value cache"])
def test_a_state_that_transformers_drops_is_an_error_and_no_text(
    model: Any, prompt: Tensor, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """As when the name of the cache changed once before: whatever transformers changes next, a
    token without its context is noticed."""
    if lost == "between tokens":
        update = SpikingGPT2LMHeadModel._update_model_kwargs_for_generation

        def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
            return {k: v for k, v in update(self, *args, **kwargs).items() if k != CACHE}

        monkeypatch.setattr(
            SpikingGPT2LMHeadModel, "_update_model_kwargs_for_generation", forgetful
        )
    else:
        monkeypatch.delattr(SpikingLanguageModel, "_prepare_cache_for_generation")
    padded = F.pad(prompt, (2, 0)), F.pad(torch.ones_like(prompt), (2, 0))
    for ids, mask in ((prompt, torch.ones_like(prompt)), padded):
        with pytest.raises((ValueError, TypeError), match=r"in the state|no state"):
            written(model, ids, attention_mask=mask, use_cache=True, **GREEDY)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_both_names_of_the_state(model: Any, prompt: Tensor, name: str) -> None:
    whole = model(prompt, use_cache=False)
    assert whole.get(CACHE) is None
    state = model(prompt[:, :3]).get(CACHE)
    rest = model(prompt[:, 3:], attention_mask=torch.ones_like(prompt), **{name: state})
    assert torch.allclose(rest.logits, whole.logits[:, 3:], atol=1e-5)
    assert rest.get(CACHE) is state and state.get_seq_length() == prompt.shape[1]
    apart = model(prompt[:, 3:], use_cache=False)
    assert not torch.allclose(apart.logits, whole.logits[:, 3:], atol=0.1)


def _key_value_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"foo": 1}, "foo"),
        ({"head_mask": None}, "head_mask"),
        ({"cache": SSAState(4), "past_key_values": SSAState(4)}, "give one"),
        ({"cache": _key_value_cache()}, "DynamicCache is no state"),
        ({"past_key_values": ((None, None),)}, "tuple is no state"),
        ({"output_attentions": True}, "no attention maps"),
        ({"inputs_embeds": torch.zeros(1, 6, 256)}, "either input_ids or inputs_embeds"),
        ({"attention_mask": torch.ones(1, 7)}, r"attention_mask is \(1, 7\)"),
        ({"attention_mask": torch.ones(1, 1, 6, 6)}, "attention_mask is"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1]])}, "between its tokens"),
        ({"labels": torch.zeros(1, 6)}, "whole numbers"),
        ({"position_ids": torch.full((1, 6), 512)}, "512 positions"),
        ({"position_ids": torch.arange(3, 9)[None]}, "position_ids reach 8"),
    ],
)
def test_what_is_not_known_or_does_not_fit_is_refused_in_one_line(
    model: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as error:
        model(torch.arange(6)[None], **arguments)
    assert "\n" not in str(error.value)


def test_training_mode_keeps_no_state_and_says_so(model: Any, prompt: Tensor) -> None:
    state = model(prompt)[CACHE]
    model.train()
    assert model(prompt).get(CACHE) is None
    for arguments in ({"use_cache": True}, {CACHE: state}):
        with pytest.raises(ValueError, match=r"call eval\(\)"):
            model(prompt, **arguments)


def test_what_is_accepted_is_honoured(model: Any, prompt: Tensor) -> None:
    plain = model(prompt, use_cache=False)
    assert set(plain) == {"logits", "last_hidden_state"}
    assert isinstance(model(prompt)[CACHE], SSAState)
    layers = model(prompt, output_hidden_states=True).hidden_states
    assert len(layers) == 5 and torch.equal(layers[-1], plain.last_hidden_state)
    assert torch.equal(model(prompt, use_cache=False, return_dict=False)[0], plain.logits)
    kept = model(prompt, logits_to_keep=2).logits
    assert torch.allclose(kept, plain.logits[:, -2:], atol=1e-5)
    some = torch.tensor([0, 3])
    kept = model(prompt, logits_to_keep=some).logits
    assert torch.allclose(kept, plain.logits[:, some], atol=1e-5)
    wte = model.get_input_embeddings()
    assert torch.equal(model(inputs_embeds=wte(prompt)).logits, plain.logits)
    typed = model(prompt, token_type_ids=torch.ones_like(prompt)).logits
    shifted = wte(prompt) + wte(torch.ones_like(prompt))
    assert torch.equal(typed, model(inputs_embeds=shifted).logits)
    right = F.pad(prompt, (0, 2)), F.pad(torch.ones_like(prompt), (0, 2))
    padded = model(right[0], attention_mask=right[1]).logits[:, :-2]
    assert torch.allclose(padded, plain.logits, atol=1e-5)


def test_positions_count_from_where_a_text_begins(model: Any, prompt: Tensor) -> None:
    """Where nobody gives them: behind padding, at once and from a state."""
    plain = model(prompt, use_cache=False).logits
    ids, mask = (F.pad(x, (3, 0)) for x in (prompt, torch.ones_like(prompt)))
    padded = model(ids, attention_mask=mask, use_cache=False).logits[:, 3:]
    assert torch.allclose(padded, plain, atol=1e-5)
    state = model(ids[:, :5], attention_mask=mask[:, :5])[CACHE]
    rest = model(ids[:, 5:], attention_mask=mask, past_key_values=state).logits
    assert torch.allclose(rest, plain[:, 2:], atol=1e-5)


def test_hidden_states_are_those_that_gpt2_gives(model: Any, prompt: Tensor) -> None:
    """Into the first block, out of each, and the last normalised."""
    seen: list[Tensor] = []
    blocks = [
        block.register_forward_hook(lambda module, args, output: seen.append(output[0]))
        for block in model.blocks
    ]
    layers = model(prompt, output_hidden_states=True).hidden_states
    for hook in blocks:
        hook.remove()
    for layer, output in zip(layers[1:-1], seen, strict=False):
        assert torch.equal(layer, output)
    assert torch.equal(layers[-1], model.transformer["ln_f"](seen[-1]))
    begin = 0 if model.config.first_token is None else 1
    places = model.transformer["wpe"](torch.arange(begin, begin + prompt.shape[1]))
    assert torch.equal(layers[0][0], model.get_input_embeddings()(prompt[0]) + places)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8])
def test_loss(model: Any, kind: torch.dtype) -> None:
    ids = torch.arange(20, 36).view(2, 8)
    labels = ids.clone().to(kind)
    if kind != torch.uint8:
        labels[0, :5] = -100
    output = model(ids, labels=labels)
    each = F.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().long(), reduction="none"
    )
    counted = each[labels[:, 1:].flatten().long() != -100]
    assert torch.allclose(output.loss, counted.mean())
    for number in (40, torch.tensor(40)):
        shared = model(ids, labels=labels, num_items_in_batch=number).loss
        assert torch.allclose(shared, counted.sum() / 40)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_batches_train_as_one(
    tiny_run: Path, tiny_dense_folder: Path, tmp_path: Path, smoothing: float
) -> None:
    """Loss and gradient of a Trainer's step, however the batch is cut, as GPT-2 has it: labels of
    all parts count alike, though some parts have more."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    ids = torch.randint(0, 4096, (4, 16), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {"input_ids": row, "labels": [-100] * (4 * n) + row[4 * n :]} for n, row in enumerate(ids)
    ]

    def first_step(folder: Path, batch: int) -> tuple[float, float]:
        settings = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=batch, report_to=[], max_steps=1,
            gradient_accumulation_steps=4 // batch, logging_steps=1, disable_tqdm=True,
            save_strategy="no", use_cpu=True, optim="sgd", max_grad_norm=1e9,
            label_smoothing_factor=smoothing,
        )  # fmt: skip
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for part in network.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        trainer = Trainer(model=network, args=settings, train_dataset=rows)
        trainer.train()
        entry = trainer.state.log_history[0]
        return entry["loss"], entry["grad_norm"]

    dense = first_step(tiny_dense_folder, 4)
    whole, parts = (first_step(tiny_run, batch) for batch in (4, 1))
    # a random model's loss is that of a guess among all tokens
    assert whole[0] == pytest.approx(dense[0], rel=0.05)
    if not smoothing:  # where transformers itself does not count the labels
        assert parts == pytest.approx(whole, rel=0.01)


def test_nothing_is_swallowed() -> None:
    parameters = inspect.signature(SpikingGPT2LMHeadModel.forward).parameters.values()
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters)


# --- dtypes ---


def nats(model: Any, ids: Tensor) -> float:
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def divergence(model: Any, other: Any, ids: Tensor) -> float:
    """Nats a token by which `other` predicts otherwise than `model` (Kullback-Leibler)."""
    with torch.no_grad():
        ours, theirs = (x(ids).logits.log_softmax(-1).flatten(0, -2) for x in (model, other))
    return float(F.kl_div(theirs, ours, reduction="batchmean", log_target=True))


@pytest.fixture(scope="module")
def text(nano_tokenizer: Any) -> Tensor:
    words = inspect.getdoc(inspect) or ""
    words += (BUNDLED / "gpt2-nano" / "README.md").read_text(encoding="utf-8")
    return nano_tokenizer(words, return_tensors="pt")["input_ids"][:, :192]


def test_the_shipped_run_loads_as_it_is_and_gives_the_same_numbers(
    model: Any, folder: Path, text: Tensor
) -> None:
    plain = shipped(folder, "auto")
    assert plain.dtype == torch.float16, "the test is of weights that are stored as halves"
    with torch.no_grad(), counting_spikes(plain) as halves:
        output = plain(text)
    with torch.no_grad(), counting_spikes(model) as whole:
        expected = model(text)
    assert torch.equal(output.logits, expected.logits)
    assert output.logits.dtype == torch.float32
    kinds = {part.dtype for state in output[CACHE].states for part in state}
    race = {torch.int8, torch.bool}  # synapses, and which token neurons are there
    assert kinds == (race if plain.config.attention == "ttfs" else {torch.float32})
    for name, spikes in whole.spikes.items():
        assert torch.equal(spikes, halves.spikes[name])
    ours, theirs = (IntegerGPT2.from_spiking(network) for network in (plain, model))
    assert torch.equal(ours(text[:, :8]), theirs(text[:, :8]))


@pytest.mark.parametrize("way", ["bfloat16", "half", "to bfloat16", "double"])
def test_weights_of_any_float_type_run_and_cost_little(
    model: Any, folder: Path, text: Tensor, prompt: Tensor, way: str
) -> None:
    if way == "bfloat16":
        other = shipped(folder, torch.bfloat16)
    else:
        other = shipped(folder)
        other = other.half() if way == "half" else other.double()
        other = other.to(torch.bfloat16) if way == "to bfloat16" else other
    kind = next(other.parameters()).dtype
    assert kind != torch.float32
    if kind == torch.bfloat16:
        # rounded weights are other weights: 0.034, where a change by a millionth is 0.016 and one
        # by 3 % is 0.053. The loss itself moves either way, with any of them
        assert divergence(model, other, text) < 0.045
    else:
        assert nats(other, text) == pytest.approx(nats(model, text), abs=1e-6)
    new = written(other, prompt, **GREEDY)
    assert torch.equal(new, written(other, prompt, use_cache=False, **GREEDY))
    with torch.no_grad():
        counts = other(prompt).logits
        other.steps = True
        assert torch.equal(counts, other(prompt).logits)
    other.steps = False
    other.train()
    other(prompt, labels=prompt).loss.backward()
    gradient = other.blocks[0].attn.c_attn.weight.grad
    assert gradient.dtype == kind and bool(gradient.any())


@pytest.fixture(scope="module")
def race(nano_tokenizer: Any) -> Any:
    """gpt2-nano just converted, its attention a race."""
    dense, _ = load_dense("gpt2-nano")
    blocks = load_blocks(None, nano_tokenizer, 64, split="train", limit_tokens=256)
    code = Code(5, "phase")
    return convert(dense, blocks, 8, "gpt2-nano", attention="ttfs", attention_code=code)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_race_runs_in_weights_of_any_float_type(
    race: Any, prompt: Tensor, kind: torch.dtype
) -> None:
    """With states that grow by a token neuron a token, of 8 bits all the same."""
    other = copy.deepcopy(race).to(kind).eval()
    with torch.no_grad():
        output = other(prompt, use_cache=True)
        assert output.logits.dtype == torch.float32
        for synapses, values, there in output[CACHE].states:
            assert synapses.dtype == values.dtype == torch.int8
            assert synapses.shape[2] == values.shape[2] == there.shape[1] == prompt.shape[1]
        state, rows = SSAState(other.config.n_layer), []
        for token in prompt.split(1, dim=1):
            rows.append(other(token, cache=state).logits)
        assert torch.allclose(torch.cat(rows, dim=1), output.logits, atol=1e-4)
        other.steps = True
        assert torch.equal(output.logits, other(prompt).logits)
    other.steps = False
    for way in ("greedy", "beams"):
        new = written(other, prompt, **WAYS[way])
        assert torch.equal(new, written(other, prompt, use_cache=False, **WAYS[way]))
    other.train()
    other(prompt, labels=prompt).loss.backward()
    gradient = other.blocks[0].attn.query.threshold.grad
    assert gradient.dtype == kind and bool(gradient.any())


def test_autocast_changes_nothing(model: Any, text: Tensor) -> None:
    with torch.no_grad():
        expected = model(text[:, :64]).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(text[:, :64]).logits, expected)
