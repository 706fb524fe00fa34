"""The command line, installed as the import package `neurtx`; one file per command."""
