"""The public functions: `load`, `convert`, `finetune`, `evaluate`, `export` and `simulate`.

Each does what the command of its name does, and the command calls it. What only a terminal needs
(options, progress bars, tables, exit codes, which run was the last one made) stays in `cli/`.

Nothing heavy is imported at the top of these files: a caller's mistake is found before torch is
loaded, and `import neurtransformer`, which imports them, stays quick.
"""

from neurtransformer.api.converting import convert
from neurtransformer.api.evaluating import evaluate
from neurtransformer.api.exporting import export
from neurtransformer.api.finetuning import finetune
from neurtransformer.api.loading import load
from neurtransformer.api.simulating import simulate

__all__ = ["convert", "evaluate", "export", "finetune", "load", "simulate"]
