"""What the numbers mean, in a few words each: for the tables of commands and for the report."""

_HOW_SENT = "rate counts spikes, phase sends binary digits"

MEANINGS = {
    # folders and settings
    "run": "folder of the spiking network",
    "netlist": "folder that was written",
    "model": "the dense model it was made from",
    "timesteps": "time steps that a neuron takes to send one value",
    "attention_timesteps": "the same in the attention",
    "coding": _HOW_SENT,
    "attention_coding": "the same in the attention",
    "attention": "ttfs: a race of neurons; linear: fast weights",
    "parameters": "numbers in the spiking network's weights",
    "calibration_tokens": "tokens that thresholds were fitted to",
    "seconds": "how long it took",
    "mode": "counts: spike counts at once; steps: every time step",
    "dtype": "number format of the weights",
    "text": "what was measured on; - is Python's help texts",
    "block": "tokens in a piece of the text",
    # quality
    "tokens": "tokens that were measured on",
    "unseen_tokens": "tokens behind the three rows above, which the fit had not seen",
    "ppl_dense": "perplexity of the dense model; lower is better",
    "ppl_spiking": "the spiking network on the same tokens",
    "ppl_ratio": "spiking over dense: 1 is no loss",
    "cosine_similarity": "of the final hidden states, dense and spiking: 1 is the same direction",
    "cosine_similarity_logits": "the same for the logits",
    "token_agreement": "tokens for which both predict the same next token",
    "spikes_per_token": "of all neurons together",
    "mean_spike_count": "spikes of a neuron for one token, on average",
    "mean_spike_rate": "the same in each time step",
    "attention_energy_reduction_percent": "arithmetic in the attention that spikes save",
    "model_energy_reduction_percent": "the same in the whole model",
    # training
    "finetune.steps": "optimisation steps",
    "finetune.tokens": "tokens that were trained on, repetitions included",
    "processes": "processes that shared the work",
    "train": "ssa: attention and thresholds; blocks: every block",
    "seed": "of the random numbers",
    "loss": "mean over the last ten steps; lower is better",
    "spikes_budget": "share of the spike cost that was allowed",
    "spikes_share": "share of the spike cost in the last ten steps",
    # netlists
    "target": "loihi2: for Lava; nir: what NIR can hold",
    "spikes": "binary: T spikes of one bit; graded: one with a number",
    "files": "files in the folder",
    "synapses": "weights that connect neurons",
    "neurons": "neurons in all networks",
    "weight_bits": "bits of a weight",
    "ppl_integer": "perplexity of the integer network",
    "ppl_ratio_to_spiking": "8-bit weights and 24-bit states over the spiking network: 1 is no "
    "loss",
    "export.ppl_ratio": "integer over dense: 1 is no loss",
    "backend": "what was compared with the integer model",
    "steps": "time steps of all networks together",
    "simulate.tokens": "tokens that went through the network",
    "compared": "spikes and states that were compared",
    "mismatches": "how many of them differ: 0 is equal, spike for spike",
    "max_abs_difference": "between the two, over all states: 0 is equal, integer for integer",
    "first_mismatch": "where the first of them is",
    "simulate.text": "what the network answers",
    "same_text": "whether the integer model answers the same",
    "backend_seconds": "what the backend took",
    "integer_seconds": "what the integer model took",
    "answer": "the right answer",
    "ways": "characters to choose between",
    "shots": "labelled drawings of each",
}
"""A key of a command's answer -> what it means. `command.key` is for that command alone."""


def meaning(key: str, command: str = "") -> str:
    """What a key of the answer of a command means; nothing if the key speaks for itself."""
    return MEANINGS.get(f"{command}.{key}") or MEANINGS.get(key, "")
