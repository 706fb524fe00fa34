"""Lets transformers load this folder; the code is in the package neurtransformer."""

from neurtransformer.spiking.config import SpikingGPT2Config
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel

__all__ = ["SpikingGPT2Config", "SpikingGPT2LMHeadModel"]
