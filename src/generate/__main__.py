"""Run as ``python -m src.generate``."""

import sys

from src.generate.command import main

if __name__ == "__main__":
    sys.exit(main())
