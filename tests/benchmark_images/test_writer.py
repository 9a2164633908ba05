"""Writing a benchmark: whole, resumable, the same pictures in whatever order, and never mixed with others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.benchmark_images.items import Benchmark, ImageFile
from src.benchmark_images.registry import BENCHMARKS
from src.benchmark_images.writer import Job, Written, grid, sample_seed, write_benchmark
from src.config.errors import UserError
from tests.benchmark_images.prompts import COPIES


class Painter:
    """Pictures that are a function of prompt and seed; counts what it is asked and stops after `limit` pictures."""

    def __init__(self, limit: int | None = None, tensors: bool = False) -> None:
        self.asked: list[tuple[str, int]] = []
        self.batches: list[int] = []
        self.limit, self.tensors = limit, tensors

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image | torch.Tensor]:
        if self.limit is not None and len(self.asked) + len(prompts) > self.limit:
            raise KeyboardInterrupt
        self.asked += zip(prompts, seeds, strict=True)
        self.batches.append(len(prompts))
        arrays = [
            np.random.default_rng([len(prompt), seed]).integers(0, 256, (5, 4, 3), dtype=np.uint8)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        if self.tensors:
            return [torch.from_numpy(array).permute(2, 0, 1) / 255 for array in arrays]
        return [Image.fromarray(array) for array in arrays]


def job(tmp_path: Path, name: str = "geneval", n: int | None = None, seed: int = 0, **facts: object) -> Job:
    benchmark = BENCHMARKS[name]
    items = benchmark.read(COPIES[name](tmp_path / "copies" / name))
    return Job(benchmark, items, n or benchmark.samples, seed, "bicot", facts)


def tree(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


EXPECTED = {
    "geneval": [
        *(f"0000{item}/samples/0000{sample}.png" for item in (0, 1) for sample in range(4)),
        "00000/metadata.jsonl",
        "00001/metadata.jsonl",
    ],
    "wise": ["1.png", "401.png", "402.png", "641.png"],
    "dpg": ["images/0.png", "images/COCOval2014000000010363.png"],
    "tiif": [
        f"{kind}/bicot/{length}_description/{number}.png"
        for kind, count in (("action+2d", 2), ("style", 1))
        for length in ("long", "short")
        for number in range(count)
    ],
    "t2i_compbench": [
        *(f"color/samples/a green bench and a blue bowl_{number:06d}.png" for number in range(10)),
        *(f"color/samples/a blue bench and a green bowl_{number:06d}.png" for number in range(10, 20)),
        *(f"complex/samples/The red hat was on top of the brown coat rack._{number:06d}.png" for number in range(10)),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_whole_layout_and_nothing_else(tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep" / "out"
    painter, told = Painter(), []
    wanted = job(tmp_path, name)
    written = write_benchmark(
        wanted, out, painter, batch_size=3, report=lambda there, total: told.append((there, total))
    )
    assert sorted(tree(out)) == sorted(["benchmark.json", *EXPECTED[name]])
    images = [path for path in EXPECTED[name] if path.endswith(".png")]
    assert written == Written(len(images), 0)
    assert told == [(i + 1, len(images)) for i in range(len(images))]
    assert not (out / ".partial").exists()
    assert max(painter.batches) == 3
    assert len(set(painter.asked)) == len(painter.asked), "no two samples share a seed"
    # Every picture is that of its own prompt and seed.
    for file in wanted.files():
        parts = [
            Painter()([file.item.prompt], [sample_seed(0, name, file.item.name, sample)])[0] for sample in file.samples
        ]
        with Image.open(out / file.path) as image:
            assert np.array_equal(np.array(image), np.array(grid(parts)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("tensors", [False, True])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path, name: str, tensors: bool) -> None:
    wanted, whole = job(tmp_path, name), tmp_path / "whole"
    write_benchmark(wanted, whole, Painter(), batch_size=100)
    asked = sum(len(file.samples) for file in wanted.files())
    for limit in (0, 1, asked // 2, asked - 1):
        out = tmp_path / f"out{limit}"
        stopped, resumed = Painter(limit), Painter(tensors=tensors)
        with pytest.raises(KeyboardInterrupt):
            write_benchmark(wanted, out, stopped, batch_size=1)
        assert set(tree(out)) <= set(tree(whole)), "nothing half-written"
        assert not (out / ".partial").exists()
        written = write_benchmark(wanted, out, resumed, batch_size=2)
        assert written.painted + written.kept == len(wanted.files())
        assert tree(out) == tree(whole)
        missing = wanted.files()[written.kept :]
        assert len(resumed.asked) == sum(len(file.samples) for file in missing), "only what was missing"
    assert write_benchmark(wanted, whole, Painter(limit=0)) == Written(0, len(wanted.files()))


def test_a_damaged_image_is_painted_again(tmp_path: Path) -> None:
    wanted, out = job(tmp_path), tmp_path / "out"
    write_benchmark(wanted, out, Painter())
    before = tree(out)
    victim, gone = out / "00000/samples/00002.png", out / "00001/metadata.jsonl"
    whole = before["00000/samples/00002.png"]
    for damaged in (b"", whole[:-20], whole[:40] + b"?" + whole[41:]):
        victim.write_bytes(damaged)
        gone.unlink()
        assert write_benchmark(wanted, out, Painter()) == Written(1, 7), damaged
        assert tree(out) == before


def test_a_left_over_partial_folder_is_cleared(tmp_path: Path) -> None:
    wanted, out = job(tmp_path), tmp_path / "out"
    write_benchmark(wanted, out, Painter())
    (out / ".partial").mkdir()
    (out / ".partial" / "image.png").write_bytes(b"half")
    assert write_benchmark(wanted, out, Painter()).painted == 0
    assert not (out / ".partial").exists()


def test_two_do_not_paint_into_one_folder(tmp_path: Path) -> None:
    """Each would clear away what the other is writing."""
    wanted, out = job(tmp_path), tmp_path / "out"
    refused: list[str] = []

    def meanwhile(there: int, total: int) -> None:
        with pytest.raises(UserError, match=r"out=.*: another process is writing there \(pid ") as told:
            write_benchmark(wanted, out, Painter())
        refused.append(str(told.value))

    assert write_benchmark(wanted, out, Painter(), report=meanwhile).painted == len(refused) > 0
    assert not (out / ".partial").exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 1}, "seed=0, not 1"),
        ({"n": 2}, "n=4, not 2"),
        ({"model": "b"}, "model=a, not b"),
        ({"name": "wise"}, "benchmark=geneval, not wise"),
    ],
)
def test_images_of_other_settings_are_not_mixed(tmp_path: Path, other: dict[str, object], words: str) -> None:
    out = tmp_path / "out"
    write_benchmark(job(tmp_path, model="a"), out, Painter())
    before = tree(out)
    changed = {"model": "a", **other}
    with pytest.raises(UserError, match=words):
        write_benchmark(job(tmp_path, **changed), out, Painter())  # type: ignore[arg-type]
    assert tree(out) == before


def test_other_prompts_are_not_mixed(tmp_path: Path) -> None:
    wanted, out = job(tmp_path), tmp_path / "out"
    write_benchmark(wanted, out, Painter())
    with pytest.raises(UserError, match="prompts=2, not 1"):
        write_benchmark(Job(wanted.benchmark, wanted.items[:1], 4, 0, "bicot", {}), out, Painter())
    with pytest.raises(UserError, match="prompts_blake2b"):
        write_benchmark(Job(wanted.benchmark, wanted.items[::-1], 4, 0, "bicot", {}), out, Painter())


def test_a_folder_or_file_of_the_users_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for place, words in ((out, "not empty"), (out / "notes.txt", "is a file")):
        with pytest.raises(UserError, match=words):
            write_benchmark(job(tmp_path), place, Painter())
    (out / "benchmark.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        write_benchmark(job(tmp_path), out, Painter())
    assert set(tree(out)) == {"notes.txt", "benchmark.json"}


@pytest.mark.parametrize(
    ("name", "n", "words"),
    [("wise", 2, "reads 1 per prompt"), ("tiif", 4, "reads 1"), ("dpg", 5, "1 to 4"), ("geneval", 0, "1 or more")],
)
def test_an_n_the_scorer_cannot_read_is_refused(tmp_path: Path, name: str, n: int, words: str) -> None:
    items = BENCHMARKS[name].read(COPIES[name](tmp_path))
    with pytest.raises(UserError, match=rf"n={n}: .*{words}"):
        Job(BENCHMARKS[name], items, n)


@pytest.mark.parametrize("model_name", ["", "..", "a/b", "a\0b"])
def test_a_model_name_is_one_folder(tmp_path: Path, model_name: str) -> None:
    with pytest.raises(UserError, match="model_name="):
        Job(BENCHMARKS["tiif"], BENCHMARKS["tiif"].read(COPIES["tiif"](tmp_path)), 1, model_name=model_name)


@pytest.mark.parametrize(("n", "size"), [(1, (4, 5)), (2, (8, 5)), (3, (8, 10)), (4, (8, 10))])
def test_dpgs_grid_is_cut_as_its_scorer_cuts_it(tmp_path: Path, n: int, size: tuple[int, int]) -> None:
    """At (0, 0), (R, 0), (0, R), (R, R), as many as --pic-num; here an image is 4 wide and 5 high."""
    wanted, out = job(tmp_path, "dpg", n=n), tmp_path / "out"
    write_benchmark(wanted, out, Painter())
    for file in wanted.files():
        with Image.open(out / file.path) as image:
            assert image.size == size
            for sample, (left, top) in enumerate([(0, 0), (4, 0), (0, 5), (4, 5)][:n]):
                (part,) = Painter()([file.item.prompt], [sample_seed(0, "dpg", file.item.name, sample)])
                assert np.array_equal(np.array(image.crop((left, top, left + 4, top + 5))), np.array(part))


def test_a_place_that_cannot_be_written_is_told_and_a_painters_error_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_benchmark(job(tmp_path), tmp_path / "file" / "out", Painter())

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
        raise OSError("the model's own trouble")

    with pytest.raises(OSError, match="the model's own trouble"):
        write_benchmark(job(tmp_path), tmp_path / "out", paint)
    assert not (tmp_path / "out" / ".partial").exists()


def test_images_of_a_grid_are_of_one_size() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        grid([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))])


def test_seeds_are_of_sample_item_benchmark_and_seed() -> None:
    seeds = {
        sample_seed(seed, benchmark, item, sample)
        for seed in (0, 1)
        for benchmark in ("geneval", "dpg")
        for item in ("1", "11")
        for sample in (0, 1, 11)
    }
    assert len(seeds) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Written down: a release that changes it would paint other pictures for the same seed.
    assert sample_seed(0, "geneval", "00000", 0) == 3008302382324118852


def test_a_layout_with_two_images_under_one_name_is_refused(tmp_path: Path) -> None:
    """Names that differ in case only are one file on some systems."""
    real = BENCHMARKS["wise"]

    def files(items: Sequence[object], n: int, model_name: str) -> list[ImageFile]:
        first, second, *_ = real.files(items, n, model_name)  # type: ignore[arg-type]
        return [ImageFile(first.path.with_name(name), second.item, (0,)) for name in ("A.png", "a.png")]

    items = real.read(COPIES["wise"](tmp_path / "copy"))
    with pytest.raises(ValueError, match="the same file name"):
        write_benchmark(Job(Benchmark("x", 1, 1, real.read, files), items, 1), tmp_path / "out", Painter())
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_what_was_painted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_benchmark(job(tmp_path, model="m", sampling={"guidance_scale": 5.0}), out, Painter())
    manifest = json.loads((out / "benchmark.json").read_text())
    digest = manifest.pop("prompts_blake2b")
    assert len(digest) == 32
    assert manifest == {
        "benchmark": "geneval",
        "prompts": 2,
        "n": 4,
        "seed": 0,
        "model_name": "bicot",
        "model": "m",
        "sampling": {"guidance_scale": 5.0},
    }
