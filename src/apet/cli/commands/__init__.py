"""The commands of `apet`, a module for each heading of the help.

Each passes its typed arguments to the function that does the work. Heavy imports are inside the commands, and those of
PyTorch after the study is read, so that `apet --help`, a mistyped option and an invalid study are answered immediately.
"""

# In the order of the help, because importing a module registers its commands.
from apet.cli.commands import study, text, models, cells, results, costs, tuned  # noqa: F401, I001
