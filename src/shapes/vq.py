"""Training transformers' own `JanusVQVAE` on drawings, the shortest way: codes first, then decoder, then encoder.

The codes are fixed to the patches that drawings are made of: unit-norm principal components of the patches.
The decoder then learns tokens -> pixels, on correct drawings and on odd grids, so that whatever a policy
samples decodes cleanly; the encoder learns to classify each patch of an image as its code.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional
from transformers import JanusVQVAE

from src.shapes.judge import recognise
from src.shapes.recipes import VQRecipe
from src.shapes.scenes import BACKGROUND, CELLS, COLORS, EMPTY, render_labels
from src.shapes.tokens import GRID_TOKENS, IMAGE_TOKENS, code_patches, labels_to_tokens, tokens_to_pixels

LOG = logging.getLogger(__name__)

#: How much more an object's pixel weighs than a background pixel: drawings are mostly background.
FOREGROUND_WEIGHT = 4.0
PALETTE_TEMPERATURE = 0.05


def random_labels(count: int, generator: torch.Generator) -> Tensor:
    """Cell numbers (count, 9) of random drawings, from nearly empty to nearly full."""
    labels = torch.randint(EMPTY, (count, CELLS), generator=generator)
    fill = torch.rand(count, 1, generator=generator)
    return torch.where(torch.rand(count, CELLS, generator=generator) < fill, labels, EMPTY)


def odd_tokens(count: int, generator: torch.Generator) -> Tensor:
    """Image tokens (count, 36): half of the grids correct, the others with 0 to 100 % random tokens."""
    tokens = labels_to_tokens(random_labels(count, generator))
    noise = torch.randint(len(code_patches()), tokens.shape, generator=generator)
    share = torch.rand(count, 1, generator=generator) * (torch.rand(count, 1, generator=generator) < 0.5)
    return torch.where(torch.rand(tokens.shape, generator=generator) < share, noise, tokens)


def set_codes(vq: JanusVQVAE) -> None:
    """Give the codebook the unit-norm principal components of the patches."""
    patches = code_patches().flatten(1)
    centred = patches - patches.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    codes = centred @ directions[: vq.config.embed_dim].T
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(functional.normalize(codes, dim=1))
    vq.quantize.embedding.weight.requires_grad_(False)


def _palette_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the five colours of the world, by distance: (N, H, W)."""
    palette = torch.tensor([BACKGROUND, *COLORS.values()])
    squared = (pixels[:, None] - palette[None, :, :, None, None]).square().sum(2)
    nearest = (target[:, None] - palette[None, :, :, None, None]).square().sum(2).argmin(1)
    return functional.cross_entropy(-squared / PALETTE_TEMPERATURE, nearest, reduction="none")


def _picture_loss(pixels: Tensor, target: Tensor) -> Tensor:
    background = torch.tensor(BACKGROUND)[:, None, None]
    painted = (target - background).abs().amax(1) > 1e-3
    weight = 1 + (FOREGROUND_WEIGHT - 1) * painted
    error = pixels - target
    per_pixel = (error.abs() + error.square()).sum(1) + 0.1 * _palette_loss(pixels, target)
    return (per_pixel * weight).mean()


def _optimise(
    parameters: list[torch.nn.Parameter], lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    return optimiser, schedule


def train_decoder(vq: JanusVQVAE, recipe: VQRecipe, generator: torch.Generator) -> float:
    """Tokens -> pixels; returns the last loss."""
    parameters = [*vq.decoder.parameters(), *vq.post_quant_conv.parameters()]
    optimiser, schedule = _optimise(parameters, recipe.lr, recipe.decoder_steps)
    loss = torch.tensor(float("nan"))
    for step in range(recipe.decoder_steps):
        tokens = odd_tokens(recipe.batch, generator)
        pixels = (vq.decode(tokens) + 1) / 2
        loss = _picture_loss(pixels, tokens_to_pixels(tokens))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            LOG.info("vq decoder step %d loss %.4f", step, loss.item())
    return loss.item()


def train_encoder(vq: JanusVQVAE, recipe: VQRecipe, generator: torch.Generator) -> float:
    """Pixels -> codes, on slightly noisy images; returns the last loss."""
    parameters = [*vq.encoder.parameters(), *vq.quant_conv.parameters()]
    optimiser, schedule = _optimise(parameters, recipe.lr, recipe.encoder_steps)
    codes = vq.quantize.embedding.weight
    loss = torch.tensor(float("nan"))
    for step in range(recipe.encoder_steps):
        tokens = odd_tokens(recipe.batch, generator)
        pixels = tokens_to_pixels(tokens)
        pixels = pixels + 0.03 * torch.randn(pixels.shape, generator=generator)
        latents = vq.quant_conv(vq.encoder(pixels * 2 - 1)).permute(0, 2, 3, 1).reshape(-1, codes.shape[1])
        # The codes are of unit norm, so the nearest one is that of the largest product.
        loss = functional.cross_entropy(latents @ codes.T, tokens.flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            LOG.info("vq encoder step %d loss %.4f", step, loss.item())
    return loss.item()


def train_vq(vq: JanusVQVAE, recipe: VQRecipe, generator: torch.Generator) -> None:
    """Codes, decoder, encoder; afterwards the model is frozen in evaluation mode."""
    assert vq.config.num_patches == GRID_TOKENS
    vq.train()
    set_codes(vq)
    train_decoder(vq, recipe, generator)
    train_encoder(vq, recipe, generator)
    vq.eval().requires_grad_(False)


@torch.no_grad()
def crispness(vq: JanusVQVAE, drawings: int, generator: torch.Generator, batch: int = 200) -> float:
    """Share of random correct drawings recognised the same in all nine cells after encode -> decode."""
    same = 0
    for start in range(0, drawings, batch):
        labels = random_labels(min(batch, drawings - start), generator)
        tokens = vq.encode(render_labels(labels) * 2 - 1).image_tokens.view(-1, IMAGE_TOKENS)
        pixels = ((vq.decode(tokens) + 1) / 2).clamp(0, 1)
        same += int((recognise(pixels) == labels).all(1).sum())
    return same / drawings
