"""Networks of nodes: how they are wired, and when each begins."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny

from neurtransformer.loihi import attention, llama
from neurtransformer.loihi.nodes import NODES, Accumulator, Count, Node, Source, Strict, Wire


def _node(values: Any) -> Any:
    """A node of a manifest as what its kind says. Raises ValueError for a kind that none has."""
    if not isinstance(values, dict):
        return values
    kinds: dict[Any, type[Node]] = {
        cls.model_fields["kind"].default: cls for cls in (*NODES, *llama.NODES, *attention.nodes())
    }
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"there is no kind of node {kind!r}")
    return kinds[kind].model_validate(values)


AnyNode = Annotated[SerializeAsAny[Node], BeforeValidator(_node)]


class Network(Strict):
    """One Lava network. The node `x` of network `h.0.attn` has its tensors under `h.0.attn.x.`"""

    name: str
    nodes: Annotated[list[AnyNode], Field(min_length=1)]
    wires: list[Wire]
    phase: Count
    """Time steps of a phase, in which one token is handled."""
    slots: Count
    """The first of them, in which neurons fire."""
    latency: Count
    """Steps from the first of a token's phase at the source to that at the last node."""

    @property
    def result(self) -> str:
        """What leaves the network, as a trace names it."""
        return f"{self.nodes[-1].name}.x"

    @property
    def sources(self) -> list[str]:
        """The nodes that send what enters."""
        return [node.name for node in self.nodes if isinstance(node, Source)]


def wired(source: Node, target: Node, port: str | None = None) -> Wire:
    """A wire to a port of a node, its first if none is named."""
    return Wire(source.name, source.output, target.name, port or target.ports[0])


def in_line(nodes: Sequence[Node]) -> list[Wire]:
    """Wires from each node to the next."""
    return [wired(a, b) for a, b in pairwise(nodes)]


def timed(
    name: str, nodes: Sequence[Node], wires: Sequence[Wire], phase: int, slots: int
) -> Network:
    """A network whose nodes begin when what they hear is there. nodes: senders before hearers.

    The first node is a source, and phase 0 begins there at once. Another source sends when what it
    drives begins. A stream that goes to an accumulator's `x_in` waits there.
    """
    begun: dict[str, Node] = {}
    late: list[Node] = []
    for node in nodes:
        if isinstance(node, Source) and begun:
            late.append(node)
            continue
        heard = [(w, begun[w.source]) for w in wires if w.target == node.name and w.source in begun]
        start = max((x.start + x.latency(phase) for _, x in heard), default=0)
        changes = {"start": start}
        if isinstance(node, Accumulator) and any(w.input == "x_in" for w, _ in heard):
            # the phases that have begun by then
            changes["delay"] = -(-start // phase)
        begun[node.name] = node.model_copy(update=changes)
    for node in late:
        start = min(begun[w.target].start for w in wires if w.source == node.name)
        begun[node.name] = node.model_copy(update={"start": start})
    return Network(
        name=name,
        nodes=[begun[node.name] for node in nodes],
        wires=list(wires),
        phase=phase,
        slots=slots,
        latency=begun[nodes[-1].name].start,
    )
