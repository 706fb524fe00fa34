"""Families of dense language models: one file each says all that is special about it.

A family is chosen by the `model_type` of a folder's config.json.
"""

from neurtransformer.families.base import Family
from neurtransformer.families.gpt2 import GPT2
from neurtransformer.families.llama import Llama

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2(), Llama())}
"""By transformers' `model_type`."""
