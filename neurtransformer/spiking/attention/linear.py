"""Linear attention: a fast-weight matrix written by spikes.

With key counts k, value counts v and query counts q of one token, and squares of k and q taken
neuron by neuron, a head does

    [o, d] <- (W + u [v, 1] (k^2)^T) q^2      (read the past, and the present with weight u)
    W <- W - W >> s + [v, 1] (k^2)^T          (forget by a power of two, then a Hebbian write)

and passes on ``o / (d + 1)``. This is softmax-free causal attention whose weights are
``u q_i^2.k_i^2`` for the token itself and ``(1 - 2^-s)^(i-j-1) q_i^2.k_j^2`` for the tokens before
it, divided by their sum (linear attention as fast weights: arXiv 2006.16236, 2102.11174; on Loihi
2: 2410.08711; a weight of its own for the present as in RWKV: 2305.13048). The 1 beside v is a
value neuron that always fires at full scale (`witness`): what a read is divided by is to be as
precise as can be. s = 0 with u = 0 is a head that sees just the token before, as softmax heads
often do. The division is one reciprocal per head and token, read from a table (`base.normalise`).

Counts act squared because the n-th spike of a key or query neuron weighs 2n - 1 at its synapse,
which facilitates linearly: n spikes deposit 1 + 3 + ... + (2n - 1) = n^2 (`coding.facilitated`). On
the chip that is a graded payload, 2n - 1 of each spike or n^2 of one. The square stands for the
second-order term of softmax's exp(q.k), which counts as they are lack. A head has KEY_EXPANSION
times as many keys and queries as values, at first one for each sign of a pretrained channel.

The module has both forms: `ssa_parallel`, over all pairs of tokens, differentiable, for training;
and `ssa_recurrent`, the bounded integer state of the chip, for everything else.
"""

from collections.abc import Callable, Mapping
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from neurtransformer.codes import (
    HEADROOM_BITS,
    KEY_EXPANSION,
    MEAN_BITS,
    NO_FORGETTING,
    STATE_BITS,
    level_bits,
    qkv_sizes,
    witness,
)
from neurtransformer.families.base import Sizes
from neurtransformer.recipe import Code
from neurtransformer.spiking.attention.base import SpikingSelfAttention, State, normalise
from neurtransformer.spiking.coding import facilitated


def write_shift(timesteps: int, shift: Tensor) -> Tensor:
    """Bits by which a product ``v k^2`` enters the state of each head shifted left: (heads,).

    A head that forgets by 2^-s per token sums up to 2^s products of full scale, T^3 each, and the
    present beside them: it gets just that room. At most it gets room for 2^HEADROOM_BITS, for heads
    that never forget. From T = 33 on those have less, 32, rather than a shift to the right, which
    would round small products away. shift: s, (heads,).
    """
    headroom = (shift + 1).clamp(2, HEADROOM_BITS)
    return (STATE_BITS - 1 - headroom - 3 * level_bits(timesteps)).clamp_min(0)


def read_shift(query: Tensor) -> Tensor:
    """How many bits of the state a read drops: the least r with ``sum q^2 <= 2^r``.

    query: the squares (..., key), or whatever payloads add up to them. Returns (...), integers.
    No read can then leave 24 bits, and one by few spikes, as most are, sees a fine state. Were it
    always the log2(key) + 2 log2(T) bits that every neuron firing T times needs, 3 or 4 more than
    is usual on text, small weights would drown in rounding. What a read is worth cancels in o / d.
    The chip adds up the payloads of a head's queries while it delays them; r is the sum's length.
    """
    return torch.frexp((query.sum(-1) - 1).clamp_min(0))[1]


def forget(state: Tensor, shift: Tensor) -> Tensor:
    """``W - round(W / 2^s)`` on integers held in floats.

    state: (..., heads, value, key). shift: (heads,), 0 (forget all) to NO_FORGETTING.
    """
    lost = (state * torch.exp2(-shift.to(state.dtype))[:, None, None]).add_(0.5).floor_()
    return torch.sub(state, lost, out=lost)


def ssa_token(
    state: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forgetting: tuple[Tensor, Tensor],
    timesteps: int,
) -> tuple[Tensor, Tensor]:
    """Read and write one token.

    state: (batch, heads, value + 1, key), integers held in floats. key: squared counts (batch,
    heads, key). value: counts (batch, heads, value + 1), the last the witness. query: the payloads
    of R reads, (R, batch, heads, key); a read is linear in them, so T reads by single spikes add up
    to one read by their sum, the squared counts, exactly. forgetting: shift s and present weight u,
    both (heads,).
    Returns reads (batch, heads, value + 1), at most 24 bits, and the next state.
    """
    shift, present = forgetting
    limit = float(2 ** (STATE_BITS - 1) - 1)
    scale = torch.exp2(write_shift(timesteps, shift).to(state.dtype))[:, None]
    written = (value * scale).unsqueeze(-1) * key.unsqueeze(-2)
    # a quarter of a product that was not shifted left is no integer, but the state is
    share = (present[:, None, None] * written).floor_()
    unit = torch.exp2(read_shift(query.sum(0)).to(state.dtype))[..., None, None]
    most = 2.0 ** (STATE_BITS - 1) / unit - 1
    visible = share.add_(state).clamp_(-limit, limit)
    visible.div_(unit).add_(0.5).floor_().clamp_(-most, most)
    membrane = torch.zeros_like(value)
    for spikes in query:
        membrane = membrane + (visible @ spikes.unsqueeze(-1)).squeeze(-1)
    return membrane, forget(state, shift).add_(written).clamp_(-limit, limit)


def ssa_recurrent(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forgetting: tuple[Tensor, Tensor],
    timesteps: int,
    state: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Token after token on the integer state.

    query: spikes (R, batch, heads, length, key), counts where R = 1. key, value: counts
    (batch, heads, length, dim). mask: (batch, length), 0 for a token that is neither written nor
    makes the state forget. Returns the integer reads (batch, heads, length, value + 1) and the
    state (batch, heads, value + 1, key) after the last token.
    """
    one = torch.full_like(value[..., :1], witness(timesteps))
    value = torch.cat([value, one], dim=-1)
    query, key = facilitated(query), key.square()
    reads = []
    for i in range(key.shape[-2]):
        token = query[..., i, :], key[..., i, :], value[..., i, :]
        membrane, after = ssa_token(state, *token, forgetting, timesteps)
        real = None if mask is None else mask[:, i, None, None, None].bool()
        state = after if real is None else torch.where(real, after, state)
        reads.append(membrane)
    return torch.stack(reads, dim=-2), state


def age_weights(shift: Tensor, present: Tensor, length: int) -> Tensor:
    """What a head keeps of token j when it reads at token i: (heads, i, j), 0 for j > i."""
    position = torch.arange(length, device=shift.device)
    age = position[:, None] - position[None, :]
    keep = (1 - torch.exp2(-shift.float()))[:, None, None]
    past = (keep ** (age - 1).clamp_min(0)).tril(-1)
    return past + present[:, None, None] * torch.eye(length, device=shift.device)


def ssa_weights(query: Tensor, key: Tensor, forgetting: tuple[Tensor, Tensor]) -> Tensor:
    """The effective attention weights, (batch, heads, i, j), before they are divided by their sum.

    query, key: counts (batch, heads, length, key), queries of the last of the keys' tokens.
    """
    query, key = query.square(), key.square()
    ages = age_weights(*forgetting, key.shape[-2])[:, -query.shape[-2] :]
    return (query @ key.transpose(-1, -2)) * ages


def ssa_parallel(
    query: Tensor, key: Tensor, value: Tensor, forgetting: tuple[Tensor, Tensor], timesteps: int
) -> Tensor:
    """All tokens at once, without rounding of the state: differentiable, for training.

    query, key, value: counts (batch, heads, length, dim). timesteps: T of the counts.
    Returns mean value counts (batch, heads, length, value).
    """
    weights = ssa_weights(query, key, forgetting)
    # the 1 of o / (d + 1), in products k^2 q^2
    dropped = read_shift(query.detach().square()) - write_shift(timesteps, forgetting[0])[:, None]
    least = torch.exp2(dropped.to(query.dtype)).unsqueeze(-1) / witness(timesteps)
    return weights @ value / (weights.sum(-1, keepdim=True) + least)


SHIFTS = (0, 1, 2, 3, 4, 5, 6, 7, NO_FORGETTING)
PRESENTS = (0.0, 0.25, 0.5, 1.0, 2.0)


def fit_forgetting(attention: Tensor) -> tuple[Tensor, Tensor]:
    """For each head the (shift, present) whose age weights are nearest to its softmax weights.

    attention: softmax weights (batch, heads, i, j). Nearest by cross-entropy, with the age weights
    normalised over j. Returns two tensors (heads,).
    """
    heads, length = attention.shape[1], attention.shape[-1]
    burn_in = min(32, length // 2)
    mean = attention[:, :, burn_in:].mean(0)
    best = torch.full((heads,), float("inf"), device=mean.device)
    shift = torch.full((heads,), NO_FORGETTING, dtype=torch.int32, device=mean.device)
    present = torch.ones(heads, device=mean.device)
    for s, u in product(SHIFTS, PRESENTS):
        weights = age_weights(shift.new_tensor([s]), present.new_tensor([u]), length)[0, burn_in:]
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
        distance = -(mean * torch.log(weights + 1e-3)).sum(-1).mean(-1)
        better = distance < best
        best = torch.where(better, distance, best)
        shift[better], present[better] = s, u
    return shift, present


class LinearAttention(SpikingSelfAttention):
    """SSA by fast weights. Query and key are unsigned, so attention weights are never negative, and
    twice as many as GPT-2's; value is signed. `shift` and `present` (heads,) are the s and u of the
    rule above.

    Query, key and value are rate coded whatever the code of the inputs and of the merged heads:
    products of phase-coded counts would not fit the state.
    """

    kind = "linear"
    signed = False, False, True
    # what is squared must not be clipped: the least coding error clips rare peaks, which matter
    # little as counts but much as squares
    rooms: ClassVar[Mapping[str, float]] = {"query": 1.3, "key": 1.3}

    shift: Tensor
    present: Tensor

    def __init__(self, sizes: Sizes, code: Code, *, innate: bool = False) -> None:
        super().__init__(sizes, code, innate=innate)
        heads = sizes.heads
        self.register_buffer("shift", torch.full((heads,), NO_FORGETTING, dtype=torch.int32))
        self.register_buffer("present", torch.ones(heads))

    @staticmethod
    def qkv_code(code: Code) -> Code:
        return Code(code.timesteps, "rate")

    @staticmethod
    def sizes(width: int, kv_width: int) -> tuple[int, int, int]:
        return qkv_sizes(width, kv_width)

    @staticmethod
    def arrange(rows: Tensor, sizes: Sizes) -> Tensor:
        """In each head of query and key W becomes [W; -W]: two neurons for one pretrained channel,
        so that unsigned counts tell both of its signs."""
        query, key, value = rows.split((sizes.width, sizes.kv_width, sizes.kv_width))
        pairs = query.unflatten(0, (sizes.heads, -1)), key.unflatten(0, (sizes.kv_heads, -1))
        return torch.cat([*(torch.cat([x, -x], dim=1).flatten(0, 1) for x in pairs), value])

    def fan_outs(self, past: float) -> tuple[float, float, float]:
        column = self.c_proj.weight.shape[0] // self.heads + 1
        return column, column, 1.0

    def fit(self, softmax: Callable[[], Tensor], scaling: float) -> None:
        shift, present = fit_forgetting(softmax())
        self.shift.copy_(shift)
        self.present.copy_(present)

    @property
    def forgetting(self) -> tuple[Tensor, Tensor]:
        """s and u, (heads,), u in float32 whatever the type of the weights."""
        return self.shift, self.present.float()

    def first(self) -> tuple[Tensor, Tensor] | None:
        """Key and value counts of the innate token, (1, heads, 1, channels), if there is one."""
        if self.first_key is None or self.first_value is None:
            return None
        # not called as modules: nobody is to count spikes that are never sent
        counts = self.key.forward(self.first_key), self.value.forward(self.first_value)
        key, value = (self.own(self.split_heads(x[None, None], self.kv_heads)) for x in counts)
        return key, value

    def own(self, shared: Tensor) -> Tensor:
        """Keys or values (..., kv_heads, length, channels), once for each query head."""
        return shared.repeat_interleave(self.shared, dim=-3) if self.shared > 1 else shared

    def after_first(self, shared: Tensor, part: int) -> Tensor:
        """Keys (part 0) or values (part 1) for each query head, the innate token's before them."""
        first, tokens = self.first(), self.own(shared)
        if first is None:
            return tokens
        return torch.cat([first[part].expand(len(tokens), -1, -1, -1), tokens], dim=-2)

    def new_state(self, batch: int) -> State:
        """The fast-weight matrix, (batch, heads, head_dim + 1, key_dim), float32: empty, or with
        the innate token written."""
        head_dim = self.c_proj.weight.shape[0] // self.heads
        shape = batch, self.heads, head_dim + 1, KEY_EXPANSION * head_dim
        matrix = self.present.new_zeros(shape, dtype=torch.float32)
        first = self.first()
        if first is not None:
            key, value = first
            nobody = torch.zeros_like(key)[None]
            timesteps = self.qkv.timesteps
            _, matrix = ssa_recurrent(nobody, key, value, self.forgetting, timesteps, matrix[:1])
        return (matrix.expand(batch, -1, -1, -1),)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        return ssa_weights(query, self.after_first(key, 0), self.forgetting)

    def parallel(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        key = key if mask is None else key * mask[:, None, :, None]
        key, value = self.after_first(key, 0), self.after_first(value, 1)
        return ssa_parallel(query, key, value, self.forgetting, self.qkv.timesteps)

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        steps: bool,
        state: State,
        mask: Tensor | None,
    ) -> tuple[Tensor, State]:
        reads = query if steps else query.unsqueeze(0)
        if steps:
            key, value = key.sum(0), value.sum(0)
        key, value = self.own(key), self.own(value)
        timesteps = self.qkv.timesteps
        if mask is not None:
            # a token that is not written does not see itself either
            key = key * mask[:, None, :, None]
        read, matrix = ssa_recurrent(reads, key, value, self.forgetting, timesteps, state[0], mask)
        return normalise(read, level_bits(timesteps)) * 2.0**-MEAN_BITS, (matrix,)
