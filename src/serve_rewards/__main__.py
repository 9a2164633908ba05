"""Run as ``python -m src.serve_rewards``."""

import sys

from src.serve_rewards.command import main

if __name__ == "__main__":
    sys.exit(main())
