"""Run as ``python -m src.score_geneval``."""

import sys

from src.score_geneval.command import main

if __name__ == "__main__":
    sys.exit(main())
