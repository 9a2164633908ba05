"""Run as ``python -m src.compare``."""

import sys

from src.compare.command import main

if __name__ == "__main__":
    sys.exit(main())
