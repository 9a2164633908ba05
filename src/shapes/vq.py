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
from src.shapes.scenes import render_labels
from src.shapes.tokens import code_patches, grid_tokens, image_tokens, labels_to_tokens, tokens_to_pixels
from src.shapes.worlds import BACKGROUND, SMALL, World

LOG = logging.getLogger(__name__)

#: How much more an object's pixel weighs than a background pixel: drawings are mostly background.
FOREGROUND_WEIGHT = 4.0
PALETTE_TEMPERATURE = 0.05


def random_labels(count: int, generator: torch.Generator, world: World = SMALL) -> Tensor:
    """Cell numbers (count, C) of random drawings, from nearly empty to nearly full."""
    labels = torch.randint(world.empty, (count, world.cells), generator=generator)
    fill = torch.rand(count, 1, generator=generator)
    return torch.where(torch.rand(count, world.cells, generator=generator) < fill, labels, world.empty)


def odd_tokens(count: int, generator: torch.Generator, world: World = SMALL) -> Tensor:
    """Image tokens (count, T): half of the grids correct, the others with 0 to 100 % random tokens."""
    tokens = labels_to_tokens(random_labels(count, generator, world), world)
    noise = torch.randint(len(code_patches(world)), tokens.shape, generator=generator)
    share = torch.rand(count, 1, generator=generator) * (torch.rand(count, 1, generator=generator) < 0.5)
    return torch.where(torch.rand(tokens.shape, generator=generator) < share, noise, tokens)


def set_codes(vq: JanusVQVAE, world: World = SMALL) -> None:
    """Give the codebook the unit-norm principal components of the patches."""
    patches = code_patches(world).flatten(1)
    centred = patches - patches.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    codes = centred @ directions[: vq.config.embed_dim].T
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(functional.normalize(codes, dim=1))
    vq.quantize.embedding.weight.requires_grad_(False)


def _palette_loss(pixels: Tensor, target: Tensor, world: World) -> Tensor:
    """Cross-entropy over the colours of the world and the background, by distance: (N, H, W)."""
    palette = torch.tensor([BACKGROUND, *world.colors.values()], device=pixels.device)
    squared = (pixels[:, None] - palette[None, :, :, None, None]).square().sum(2)
    nearest = (target[:, None] - palette[None, :, :, None, None]).square().sum(2).argmin(1)
    return functional.cross_entropy(-squared / PALETTE_TEMPERATURE, nearest, reduction="none")


def _picture_loss(pixels: Tensor, target: Tensor, world: World) -> Tensor:
    background = torch.tensor(BACKGROUND, device=pixels.device)[:, None, None]
    painted = (target - background).abs().amax(1) > 1e-3
    weight = 1 + (FOREGROUND_WEIGHT - 1) * painted
    error = pixels - target
    per_pixel = (error.abs() + error.square()).sum(1) + 0.1 * _palette_loss(pixels, target, world)
    return (per_pixel * weight).mean()


def _optimise(
    parameters: list[torch.nn.Parameter], lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    return optimiser, schedule


def train_decoder(vq: JanusVQVAE, recipe: VQRecipe, generator: torch.Generator, world: World = SMALL) -> float:
    """Tokens -> pixels; returns the last loss."""
    parameters = [*vq.decoder.parameters(), *vq.post_quant_conv.parameters()]
    device = parameters[0].device
    optimiser, schedule = _optimise(parameters, recipe.lr, recipe.decoder_steps)
    loss = torch.tensor(float("nan"))
    for step in range(recipe.decoder_steps):
        tokens = odd_tokens(recipe.batch, generator, world)
        pixels = (vq.decode(tokens.to(device)) + 1) / 2
        loss = _picture_loss(pixels, tokens_to_pixels(tokens, world).to(device), world)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            LOG.info("vq decoder step %d loss %.4f", step, loss.item())
    return loss.item()


def train_encoder(vq: JanusVQVAE, recipe: VQRecipe, generator: torch.Generator, world: World = SMALL) -> float:
    """Pixels -> codes, on slightly noisy images; returns the last loss."""
    parameters = [*vq.encoder.parameters(), *vq.quant_conv.parameters()]
    optimiser, schedule = _optimise(parameters, recipe.lr, recipe.encoder_steps)
    codes = vq.quantize.embedding.weight
    loss = torch.tensor(float("nan"))
    for step in range(recipe.encoder_steps):
        tokens = odd_tokens(recipe.batch, generator, world)
        pixels = tokens_to_pixels(tokens, world)
        pixels = pixels + 0.03 * torch.randn(pixels.shape, generator=generator)
        latents = (
            vq.quant_conv(vq.encoder(pixels.to(codes.device) * 2 - 1)).permute(0, 2, 3, 1).reshape(-1, codes.shape[1])
        )
        # The codes are of unit norm, so the nearest one is that of the largest product.
        loss = functional.cross_entropy(latents @ codes.T, tokens.flatten().to(codes.device))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            LOG.info("vq encoder step %d loss %.4f", step, loss.item())
    return loss.item()


def train_vq(vq: JanusVQVAE, recipe: VQRecipe, generator: torch.Generator, world: World = SMALL) -> None:
    """Codes, decoder, encoder, on the model's device; afterwards it is frozen in evaluation mode."""
    assert vq.config.num_patches == grid_tokens(world)
    vq.train()
    set_codes(vq, world)
    train_decoder(vq, recipe, generator, world)
    train_encoder(vq, recipe, generator, world)
    vq.eval().requires_grad_(False)


@torch.no_grad()
def crispness(
    vq: JanusVQVAE, drawings: int, generator: torch.Generator, batch: int = 200, world: World = SMALL
) -> float:
    """Share of random correct drawings recognised the same in all cells after encode -> decode."""
    same = 0
    for start in range(0, drawings, batch):
        labels = random_labels(min(batch, drawings - start), generator, world)
        tokens = vq.encode(render_labels(labels, world).to(vq.device) * 2 - 1).image_tokens.view(
            -1, image_tokens(world)
        )
        pixels = ((vq.decode(tokens) + 1) / 2).clamp(0, 1)
        same += int((recognise(pixels, world) == labels).all(1).sum())
    return same / drawings
