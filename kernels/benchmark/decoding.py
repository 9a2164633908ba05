"""``python -m kernels.benchmark.decoding``: the decode step's operations held to float64, then beside the peers.

One layer's operations at Janus-Pro's sizes, 32 rows (16 images, guided). ``--dry-run`` goes the same way over tiny
sizes with the plain-torch operations on a CPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kernels import BackendUnavailable, DecodeOperations, decoding, operations
from kernels.benchmark import clock, report
from kernels.benchmark.accuracy import Failed

RESULTS = Path(__file__).resolve().parent.parent / "results"
EPSILON = 1e-6


class Step(NamedTuple):
    """Sizes of one layer in one step; filled: places of the cache that hold something, in the longest row."""

    trunk: str
    rows: int
    heads: int
    head_dim: int
    mlp: int
    places: int
    filled: int

    def __str__(self) -> str:
        return f"{self.trunk}, {self.rows} rows, {self.filled} of {self.places} places"


class Data(NamedTuple):
    """What the operations of one layer take."""

    qkv: Tensor
    cos: Tensor
    sin: Tensor
    keys: Tensor
    values: Tensor
    place: Tensor
    first: Tensor
    length: Tensor
    x: Tensor
    delta: Tensor
    weight: Tensor
    gate_up: Tensor

    @property
    def q(self) -> Tensor:
        """Queries (N, Hq, D), not rotated."""
        return self.qkv[:, : self.x.shape[1]].unflatten(1, (-1, self.keys.shape[3]))


class Contestant(NamedTuple):
    """One way to do one operation; the least bytes it has to move."""

    operation: str
    name: str
    work: Callable[[], object]
    moved: int


@dataclass(frozen=True)
class Time:
    """One line of decoding.csv; figures are None where a contestant failed. times_ours: above 1, ours is faster."""

    operation: str
    trunk: str
    rows: int
    filled: int
    contestant: str
    cache: str
    status: str
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    graph: bool | None = None
    copy_share: float | None = None
    times_ours: float | None = None


def steps(dry: bool) -> list[Step]:
    """A cache early, half and all filled, for both trunks; and one image of the larger."""
    if dry:
        return [Step("tiny", 4, 2, 16, 48, 12, 9)]
    sizes = [("7B", 32, 32, 11_008), ("1B", 32, 16, 5632), ("7B", 2, 32, 11_008)]
    return [Step(name, rows, h, 128, mlp, 1024, n) for name, rows, h, mlp in sizes for n in (100, 400, 1000)]


def random_data(step: Step, device: torch.device, dtype: torch.dtype) -> Data:
    """Normal numbers; rows of different lengths, padded on the left by up to a tenth of what is filled."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, device=device, generator=generator).to(dtype)

    width = step.heads * step.head_dim
    angle = draw(step.rows, step.head_dim).float()
    cache = (step.rows, step.heads, step.places, step.head_dim)
    length = torch.tensor([step.filled], device=device)
    return Data(
        draw(step.rows, 3 * width),
        angle.cos(),
        angle.sin(),
        draw(*cache),
        draw(*cache),
        length - 1,
        torch.arange(step.rows, device=device) * step.filled // (10 * step.rows),
        length,
        draw(step.rows, width),
        draw(step.rows, width),
        draw(width),
        draw(step.rows, 2 * step.mlp),
    )


def answers(ops: DecodeOperations, data: Data) -> dict[str, Tensor]:
    """Every result of the four operations; the cache is left as it was."""
    keys, values = data.keys.clone(), data.values.clone()
    q = ops.rotate_and_store(data.qkv, data.cos, data.sin, keys, values, data.place)
    at = data.place.reshape(1)
    total, normed = ops.add_rms_norm(data.x, data.delta, data.weight, EPSILON)
    return {
        "rotated queries": q,
        "stored keys": keys.index_select(2, at),
        "stored values": values.index_select(2, at),
        "attention": ops.decode_attention(data.q, data.keys, data.values, data.first, data.length),
        "sum": total,
        "norm": normed,
        "silu": ops.silu_mul(data.gate_up),
    }


def hold_to_oracle(ops: DecodeOperations, data: Data) -> float:
    """Compare with plain torch in float64; the largest error, relative to the largest entry.

    Raises Failed where a result is off by more than three roundings of the entry and 1e-5 of the largest.
    """
    exact = Data(*(x.double() if x.is_floating_point() else x for x in data))
    right = answers(operations("torch", data.x.device).decoding, exact)
    worst = 0.0
    for name, got in answers(ops, data).items():
        want, eps = right[name], torch.finfo(got.dtype).eps
        bound = 3 * eps * want.abs() + 1e-5 * want.abs().max()
        off = (got.double() - want).abs()
        if not bool((off <= bound).all()):  # what is NaN is wrong
            raise Failed(f"{name}: off by {off.max().item():.1e}, more than its rounding")
        worst = max(worst, (off.max() / want.abs().max()).item())
    return worst


def contestants(data: Data, ours: DecodeOperations, filled: int, compile_: bool) -> Iterator[Contestant]:
    """Ours, eager torch and torch.compile of each operation, and SDPA with a mask for attention."""
    rows, kv_heads, _, head_dim = data.keys.shape
    e, width = data.x.element_size(), data.x.shape[1]
    counted = rows * filled - int(data.first.sum())
    calls: dict[str, tuple[tuple[object, ...], int]] = {
        "rotate_and_store": (data[:6], 2 * data.qkv.numel() * e),
        "decode_attention": (
            (data.q, data.keys, data.values, data.first, data.length),
            2 * (counted * kv_heads * head_dim + rows * width) * e,
        ),
        "add_rms_norm": ((data.x, data.delta, data.weight, EPSILON), 4 * data.x.numel() * e),
        "silu_mul": ((data.gate_up,), data.gate_up.numel() * e * 3 // 2),
    }
    for operation, (arguments, moved) in calls.items():
        plain = getattr(decoding, operation)
        yield Contestant(operation, "ours", partial(getattr(ours, operation), *arguments), moved)
        yield Contestant(operation, "eager torch", partial(plain, *arguments), moved)
        if compile_:
            yield Contestant(operation, "torch.compile", partial(torch.compile(plain), *arguments), moved)
        if operation == "decode_attention":
            yield Contestant(operation, "SDPA with a mask", partial(_sdpa, data), moved)
            sliced = data._replace(keys=data.keys[:, :, :filled], values=data.values[:, :, :filled])
            yield Contestant(operation, "SDPA, the host knows the length", partial(_sdpa, sliced), moved)


def _sdpa(data: Data) -> Tensor:
    places = torch.arange(data.keys.shape[2], device=data.x.device)
    mask = (places >= data.first[:, None]) & (places < data.length)
    return functional.scaled_dot_product_attention(data.q[:, :, None], data.keys, data.values, mask[:, None, None])


def compare(
    step: Step, data: Data, ours: DecodeOperations, rounds: int, copied: float, compile_: bool
) -> Iterator[Time]:
    """All contestants of one step, operation by operation, with a cold cache and a hot one."""
    field: dict[str, dict[str, Contestant]] = {}
    for contestant in contestants(data, ours, step.filled, compile_):
        field.setdefault(contestant.operation, {})[contestant.name] = contestant
    for operation, rivals in field.items():
        for cache in ("cold", "hot"):
            works = {name: contestant.work for name, contestant in rivals.items()}
            timings, failed = clock.measure(works, data.x.device, rounds, cold=cache == "cold")
            if "ours" in failed:
                raise failed["ours"]
            for name, contestant in rivals.items():
                where = (operation, step.trunk, step.rows, step.filled, name, cache)
                if name in failed:
                    yield Time(*where, f"failed: {type(failed[name]).__name__}")
                    continue
                timing = timings[name]
                share = contestant.moved / (timing.median * 1e-3) / copied
                yield Time(*where, "measured", *timing, share, timing.median / timings["ours"].median)


_MINE = (*report.WRITTEN, report.DECODING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; 2 where nothing can run, 1 where the operations are wrong, else 0."""
    options = _parser().parse_args(arguments)
    problem = report.taken(Path(options.out), _MINE, options.overwrite) if options.out else None
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU: the benchmark needs one; --dry-run runs everything without timing", file=sys.stderr)
        return 2
    try:
        ours = operations("torch" if options.dry_run else "triton", device).decoding
    except BackendUnavailable as error:
        print(error, file=sys.stderr)
        return 2
    rounds = 3 if options.dry_run else options.rounds
    copied = clock.copy_bandwidth(device, rounds, 4096 if options.dry_run else 2**31)
    print(f"copy {copied / 1e12:.3f} TB/s")
    times: list[Time] = []
    for step in steps(options.dry_run):
        torch.compiler.reset()
        data = random_data(step, device, torch.bfloat16)
        try:
            worst = hold_to_oracle(ours, data)
        except Failed as error:
            print(f"{step}: {error}", file=sys.stderr)
            return 1
        print(f"\n{step}: agrees with float64 (within {worst:.1e} of the largest entry)")
        for time in compare(step, data, ours, rounds, copied, options.compile):
            times.append(time)
            _print_time(time)
    if options.dry_run and not options.out:
        print("\ndry run: nothing written (give --out to see the file)")
        return 0
    path = Path(options.out or RESULTS) / report.DECODING
    facts = {**report.versions(device), "copy_bytes_per_s": f"{copied:.4g}", "rounds": str(rounds)}
    report.write_csv(path, (asdict(time) for time in times), facts)
    print(f"\n{path}")
    return 0


def _print_time(time: Time) -> None:
    label = f"  {time.operation:18} {time.contestant:32} {time.cache:5}"
    if time.median_ms is None:
        print(label, time.status)
        return
    span = f"{time.median_ms * 1e3:9.1f} us ({time.p10_ms or 0:.4f} to {time.p90_ms or 0:.4f} ms)"
    print(f"{label} {span}  {time.times_ours:6.2f} x ours  {time.copy_share:6.1%} of the copy bandwidth")


def _parser() -> argparse.ArgumentParser:
    name = "python -m kernels.benchmark.decoding"
    parser = argparse.ArgumentParser(prog=name, description=(__doc__ or "").split("\n")[0])
    add: Callable[..., object] = parser.add_argument
    add("--rounds", type=int, default=50, help="timed runs of each contestant (default 50)")
    add("--out", help="folder for decoding.csv (default kernels/results)")
    add("--overwrite", action="store_true", help="write over the earlier output that --out holds")
    add("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    add("--dry-run", action="store_true", help="tiny sizes and plain torch on the CPU; times mean nothing")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
