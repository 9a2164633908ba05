"""Lines for the user who watches the run: from rank 0 only, never inside a progress bar."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only

from src.config.masking import masked_text


@rank_zero_only
def say(text: str) -> None:
    """Print a line above the progress bar, secrets masked."""
    from tqdm import tqdm

    tqdm.write(masked_text(text))
