"""A sheet of samples one can read: image, prompt, plan and score side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from src.runs.sound_files import partial_path, sync_file

if TYPE_CHECKING:
    from PIL import Image

# A whole multiple of the drawn worlds' pictures, 24 and 48 pixels wide: their pixels stay squares of one size.
TILE, TEXT, GAP, COLUMNS = 192, 300, 14, 2
LINE, WRAP = 16, 44


def sheet(
    path: Path,
    title: str,
    prompts: Sequence[str],
    plans: Sequence[str],
    pixels: Tensor,
    captions: Sequence[str],
) -> None:
    """Write a PNG with one tile a sample.

    pixels (N, 3, H, W) in [0, 1]; small images are enlarged without smoothing, so that what is seen is what
    was decoded. The file appears whole or not at all.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(prompts) // COLUMNS)
    width, height = COLUMNS * (TILE + TEXT + 2 * GAP) + GAP, 44 + rows * (TILE + GAP)
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    heading, body, strong = (ImageFont.load_default(size) for size in (18, 12, 13))
    pen.text((GAP, 12), title, fill="black", font=heading)
    for index, (prompt, plan, caption) in enumerate(zip(prompts, plans, captions, strict=True)):
        left = GAP + (index % COLUMNS) * (TILE + TEXT + 2 * GAP)
        top = 44 + (index // COLUMNS) * (TILE + GAP)
        canvas.paste(_tile(pixels[index]), (left, top))
        pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline="#999999")
        text_left, y = left + TILE + GAP, top
        for text, colour, font, lines in (
            (prompt, "black", strong, 3),
            (f"plan: {plan}", "#444444", body, 5),
            (caption, "#0a5fb4", body, 2),
        ):
            for line in _wrapped(text, lines):
                pen.text((text_left, y), line, fill=colour, font=font)
                y += LINE
            y += 4
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    canvas.save(partial, format="PNG")
    sync_file(partial)
    partial.replace(path)


def _tile(pixels: Tensor) -> Image.Image:
    from PIL import Image

    array = (pixels.detach().cpu().permute(1, 2, 0) * 255).round().byte().numpy()
    image = Image.fromarray(array)
    smooth = Image.Resampling.NEAREST if max(image.size) < TILE else Image.Resampling.LANCZOS
    return image.resize((TILE, TILE), smooth)


def _wrapped(text: str, lines: int) -> list[str]:
    wrapped = textwrap.wrap(text, WRAP) or [""]
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], textwrap.shorten(" ".join(wrapped[lines - 1 :]), WRAP, placeholder=" ...")]
    return wrapped
