"""Operations of the fast-weight attention's core."""

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neurtransformer.measure.counts import LayerSpikes, Ops, Part, Shape
from neurtransformer.spiking.attention.linear import LinearAttention


def listen(attention: LinearAttention, events: dict[str, float]) -> list[RemovableHandle]:
    """Add up, over tokens, the key neurons that fire at all: all of them (`written`), and those in
    heads that let a token attend to itself, u not 0 (`present`). Where query heads share keys, each
    head has a state of its own to write them to."""

    def hear(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        # spikes of all steps, or counts
        fired = (output.sum(0) if output.dim() == 4 else output) > 0
        heads = fired.flatten(0, 1).unflatten(-1, (attention.kv_heads, -1)).sum((0, 2))
        heads = heads.repeat_interleave(attention.shared)
        events["written"] = events.get("written", 0.0) + float(heads.sum())
        present = float(heads[attention.present != 0].sum())
        events["present"] = events.get("present", 0.0) + present

    return [attention.key.register_forward_hook(hear)]


def core(s: Shape, n: LayerSpikes) -> Part:
    """Causal SSA of one block by fast weights.

    write: counting the spikes of key and value costs one AC each; each key that fired is squared,
    and its square times the whole vector of value counts, head_dim values and the witness, zeros
    too, goes into its column of the state, one MAC each. present: that column goes, times u, into
    what this token reads too, in heads that read it. forget: shift and subtract at every entry of
    the state, one AC each, in every head whether it forgets or not; that pass reads and writes the
    state. read: a query spike carries a payload, 2n - 1 (n^2 if graded), at a MAC to form it and
    an AC to add it to the head's sum; each entry of the column that it visits is shifted, an AC,
    and multiplied, a MAC; the shift takes one search for the leading bit of the sum per head.
    normalise: per head one addition, one search for the leading bit and one table look-up (an AC
    each), per value one product with the reciprocal and two rounding shifts.
    """
    column = s.width // s.heads + 1
    state = column * s.qkv[0]
    written = n.events.get("written", 0.0)
    write, present = written * column, n.events.get("present", 0.0) * column
    visited = n.query * column
    counted = n.key + n.value
    return {
        "write": Ops(
            mac=written + write, ac=counted, states=2 * write, events=counted, writes=write
        ),
        "present": Ops(mac=present, states=2 * present),
        "forget": Ops(ac=state, states=2 * state, writes=state),
        "read": Ops(
            mac=visited + n.query,
            ac=visited + n.query + s.heads,
            states=visited,
            events=visited,
        ),
        "normalise": Ops(mac=s.width, ac=2 * s.width + 3 * s.heads, weights=s.heads),
    }
