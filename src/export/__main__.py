"""Run as ``python -m src.export``."""

import sys

from src.export.command import main

if __name__ == "__main__":
    sys.exit(main())
