"""Recipes and limits as YAML files, installed as `neurtransformer.configs`."""
