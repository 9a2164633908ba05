"""How different the pictures of one prompt are from each other, in whatever space they are embedded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

PIXELS = "pixels"
SIDE = 32  # of pictures compared as pixels


@runtime_checkable
class Embeds(Protocol):
    """An expert that offers its image tower."""

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings (N, D) float32 of pixels (N, 3, H, W) in [0, 1]."""
        ...


def vendi_score(embeddings: Tensor) -> float:
    """How many different items there are, in effect: exp of the entropy of the eigenvalues of K / n.

    embeddings (n, D); K is their cosine similarity. 1 where all are the same, n where all are orthogonal.
    Friedman & Dieng, arXiv 2210.02410, definition 3.1.
    """
    unit = _unit(embeddings)
    eigenvalues = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp_min(0.0)
    return math.exp(float(torch.special.entr(eigenvalues).sum()))


def mean_pairwise_distance(embeddings: Tensor) -> float:
    """The mean of 1 - cosine over all pairs of embeddings (n, D), n >= 2."""
    unit = _unit(embeddings)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return float((1 - (unit[first] * unit[second]).sum(1)).clamp_min(0.0).mean())


def pixel_embedding(pixels: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) as they are, (N, D); larger pictures are averaged down to 32 x 32 first."""
    if max(pixels.shape[2:]) > SIDE:
        pixels = interpolate(pixels, size=(SIDE, SIDE), mode="area")
    return pixels.flatten(1)


def embedding(choice: str, experts: Mapping[str, object]) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The name of a space to compare pictures in, and the function into it.

    choice: "pixels", the name of an expert that embeds, or "auto": the first such expert, else pixels.

    Raises:
        ValueError: for an expert that does not exist or does not embed.
    """
    towers = {name: expert for name, expert in experts.items() if isinstance(expert, Embeds)}
    if choice == "auto":
        choice = next(iter(towers), PIXELS)
    if choice == PIXELS:
        return choice, pixel_embedding
    if choice not in towers:
        known = ", ".join((PIXELS, "auto", *towers))
        raise ValueError(f"embedding={choice}: no expert with that name embeds pictures; there are {known}")
    return choice, towers[choice].embed


def _unit(embeddings: Tensor) -> Tensor:
    """Rows of length 1 in float64; a row of zeros (a black picture) gets a separate direction, the same for all."""
    rows = embeddings.double()
    zero = (rows == 0).all(1, keepdim=True)
    return normalize(torch.cat([rows, zero.double()], dim=1), dim=1)
