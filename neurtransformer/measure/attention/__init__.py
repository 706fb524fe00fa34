"""What each kind of attention costs: one file a kind, with what it listens to and counts.

A kind's file has `listen(attention, events)`, which registers the hooks that count what happens in
the core beside the spikes of its coding neurons, and `core(shape, spikes)`, the operations of the
core for one token of one block.
"""

from types import ModuleType

from neurtransformer.measure.attention import linear, ttfs

KINDS: dict[str, ModuleType] = {"ttfs": ttfs, "linear": linear}
