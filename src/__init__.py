"""BiCoT-GRPO: reinforcement learning of plans and images in one model.

Importing the package only sets up the import hooks of `src.cli.compat`; it stays cheap.
"""

from src.cli import compat

__version__ = "0.1.0"

compat.install()
