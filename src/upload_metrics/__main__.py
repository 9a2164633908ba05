"""Run as ``python -m src.upload_metrics``."""

import sys

from src.upload_metrics.command import main

if __name__ == "__main__":
    sys.exit(main())
