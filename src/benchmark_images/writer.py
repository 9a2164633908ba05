"""Paints a benchmark's images into its layout: existing images stay, nothing is half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from src.benchmark_images.items import Benchmark, ImageFile, Item
from src.benchmark_images.manifest import FILE, Manifest, check_folder, write_text
from src.config.errors import UserError
from src.images import to_image
from src.runs.folder_lock import owned

PARTIAL = ".partial"  # inside of the output, so that a rename stays on one file system; gone at the end
# (prompts, seeds) -> a picture each: a PIL image, or pixels (3, H, W) in [0, 1]. The same seed and prompt should give
# the same picture in any batch, up to rounding.
Paint = Callable[[Sequence[str], Sequence[int]], Sequence[Image.Image | Tensor]]


@dataclass(frozen=True, slots=True)
class Job:
    """Which images are wanted of a benchmark.

    n: images a prompt. seed: of all of them. model_name: for layouts that have one in their paths. facts: what
    paints them, kept in benchmark.json; images of other facts are not mixed.

    Raises:
        UserError: for an n the benchmark's scorer cannot read, or a model_name that is not a folder name.
    """

    benchmark: Benchmark
    items: tuple[Item, ...]
    n: int
    seed: int = 0
    model_name: str = "model"
    facts: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        name, most = self.benchmark.name, self.benchmark.most
        if self.n < 1 or (most is not None and self.n > most):
            wanted = "1 or more" if most is None else "1" if most == 1 else f"1 to {most}"
            raise UserError(f"n={self.n}: the scorer of {name} reads {wanted} per prompt")
        if not self.model_name or set(self.model_name) & set("/\\\0") or self.model_name in (".", ".."):
            raise UserError(f"model_name={self.model_name!r}: expected the name of a folder")

    def files(self) -> list[ImageFile]:
        """All images, in the order they are painted."""
        return self.benchmark.files(self.items, self.n, self.model_name)

    def manifest(self) -> Manifest:
        """What benchmark.json holds."""
        texts = json.dumps([[item.name, item.prompt] for item in self.items])
        return {
            "benchmark": self.benchmark.name,
            "prompts": len(self.items),
            "prompts_blake2b": hashlib.blake2b(texts.encode(), digest_size=16).hexdigest(),
            "n": self.n,
            "seed": self.seed,
            "model_name": self.model_name,
            **(self.facts or {}),
        }


@dataclass(frozen=True, slots=True)
class Written:
    """Image files painted now, and those that were there."""

    painted: int
    kept: int


def sample_seed(seed: int, benchmark: str, item: str, sample: int) -> int:
    """The seed of one sample, in [0, 2**63): a hash of the four, so that no order of painting enters."""
    digest = hashlib.blake2b(json.dumps([seed, benchmark, item, sample]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def write_benchmark(
    job: Job, out: Path, paint: Paint, batch_size: int = 1, report: Callable[[int, int], None] | None = None
) -> Written:
    """Paint every image of `job` that is not yet below `out`, and write the layout's other files.

    batch_size: pictures asked of `paint` at once. report: called with (image files there, image files in all).
    After an interruption the next call continues where it stopped. A damaged image file is painted again.

    Raises:
        UserError: if `out` holds anything else, cannot be written, or is being written by another process.
    """
    check_folder(out, job.manifest())
    files = job.files()
    if len({str(file.path).casefold() for file in files}) < len(files):
        raise ValueError(f"{job.benchmark.name}: two images would have the same file name")
    with _partial_folder(out) as partial:
        write_text(out / FILE, json.dumps(job.manifest(), indent=2, ensure_ascii=False) + "\n", partial)
        for path, text in job.benchmark.documents(job.items).items():
            if not (out / path).is_file():
                write_text(out / path, text, partial)
        pending = [file for file in files if not is_whole_image(out / file.path)]
        done = len(files) - len(pending)
        for file, image in _painted(job, pending, paint, batch_size):
            target = out / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            image.save(partial / "image.png", format="PNG")
            os.replace(partial / "image.png", target)
            done += 1
            if report is not None:
                report(done, len(files))
    return Written(len(pending), len(files) - len(pending))


def is_whole_image(path: Path) -> bool:
    """Whether `path` is an image to its last byte, by a PNG's own checksums."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """One image as it is; more in two columns, row by row, black where none is left.

    Raises:
        ValueError: for images of different sizes.
    """
    if len(images) == 1:
        return images[0]
    if len({image.size for image in images}) > 1:
        raise ValueError("the images of a grid differ in size")
    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width, (len(images) + 1) // 2 * height))
    for place, image in enumerate(images):
        sheet.paste(image, (place % 2 * width, place // 2 * height))
    return sheet


def _painted(
    job: Job, files: Sequence[ImageFile], paint: Paint, batch_size: int
) -> Iterator[tuple[ImageFile, Image.Image]]:
    """Every file with its image as soon as its last sample is painted; a batch may span files."""
    wanted = [(file, sample) for file in files for sample in file.samples]
    ready: list[Image.Image] = []
    for start in range(0, len(wanted), batch_size):
        part = wanted[start : start + batch_size]
        seeds = [sample_seed(job.seed, job.benchmark.name, file.item.name, sample) for file, sample in part]
        pictures = paint([file.item.prompt for file, _ in part], seeds)
        for (file, sample), picture in zip(part, pictures, strict=True):
            ready.append((to_image(picture) if isinstance(picture, Tensor) else picture).convert("RGB"))
            if sample == file.samples[-1]:
                yield file, grid(ready)
                ready = []


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    partial = out / PARTIAL
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with owned(partial, f"out={out}"):
            try:
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno is None:  # not of the file system: whatever painted raised it
            raise
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from error
