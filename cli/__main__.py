"""`python -m neurtx`: the command line, where no script `neurtx` is on the path."""

from . import process

# Ctrl-C may come while the rest is imported
process.catch_signals()

from .main import main  # noqa: E402

main()
