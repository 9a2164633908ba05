"""Run as ``python -m src.evaluate``."""

import sys

from src.evaluate.command import main

if __name__ == "__main__":
    sys.exit(main())
