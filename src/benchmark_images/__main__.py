"""Run as ``python -m src.benchmark_images``."""

import sys

from src.benchmark_images.command import main

if __name__ == "__main__":
    sys.exit(main())
