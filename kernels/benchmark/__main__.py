"""``python -m kernels.benchmark``: the oracle on the card, then ours beside the peers, then the bars.

On a machine without a GPU, ``--dry-run`` goes the same way over tiny shapes with the plain-torch operations; its
times mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from kernels import BackendUnavailable, Operations, operations
from kernels.benchmark import accuracy, clock, contestants, report
from kernels.benchmark.contestants import Contestant, Shape
from kernels.benchmark.report import Result

RESULTS = Path(__file__).resolve().parent.parent / "results"
VOCABULARIES = ((16_384, (576, 4608, 32_768)), (102_400, (1024, 4096)))
WIDTHS = (2048, 4096)


def shapes(dry: bool) -> list[Shape]:
    """From logits, then from hidden states; the image vocabulary and the text one."""
    if dry:
        return [Shape(8, 64), Shape(8, 64, 16)]
    plain = [Shape(t, v) for v, lengths in VOCABULARIES for t in lengths]
    return plain + [Shape(t, v, h) for v, lengths in VOCABULARIES for t in lengths for h in WIDTHS]


_MINE = (*report.WRITTEN, report.DECODING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; 0 whatever the bars say, 2 where nothing can run, 1 where the operations are wrong."""
    options = _parser().parse_args(arguments)
    problem = report.taken(Path(options.out), _MINE, options.overwrite) if options.out else None
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU: the benchmark needs one; --dry-run runs everything without timing", file=sys.stderr)
        return 2
    ours: Operations | None = None
    try:
        ours = operations("torch" if options.dry_run else "triton", device)
    except BackendUnavailable as error:
        print(error, file=sys.stderr)
        return 2
    dtype = torch.bfloat16
    todo = [s for s in shapes(options.dry_run) if options.only is None or options.only in str(s)]
    for shape in (s for s in todo if not s.hidden):
        try:
            worst = accuracy.hold_to_oracle(ours, contestants.from_logits(shape, device, dtype))
        except accuracy.Failed as error:
            print(f"{shape}: {error}", file=sys.stderr)
            return 1
        print(f"{shape}: agrees with float64 (log-prob within {worst:.1e} relative)")
    for shape in (s for s in todo if s.hidden):
        data = contestants.from_hidden(shape, device, dtype)
        try:
            worst = accuracy.hold_head_to_oracle(ours, data)
            if shape == next(s for s in todo if s.hidden):
                single = data._replace(**{k: x.float() for k, x in data._asdict().items() if x.dtype == dtype})
                single = single._replace(features=single.features.detach().requires_grad_())
                accuracy.hold_head_to_oracle(ours, single)
                accuracy.hold_head_to_oracle(ours, data, kl="exact", entropy=True, guidance_scale=5.0)
                print(f"{shape}: agrees in float32, and with exact KL, entropy and guidance")
        except accuracy.Failed as error:
            print(f"{shape}: {error}", file=sys.stderr)
            return 1
        print(f"{shape}: agrees with float64 (log-prob within {worst:.1e} nats)")
        del data
    table = list(accuracy.k3_table(ours, *((64, 64) if options.dry_run else (4608, 16_384)), device))
    _print_accuracy(table)

    rounds = 3 if options.dry_run else options.rounds
    copied = clock.copy_bandwidth(device, rounds, 4096 if options.dry_run else 2**31)
    rate = clock.matrix_rate(device, rounds, 64 if options.dry_run else 8192, dtype)
    print(f"\ncopy {copied / 1e12:.3f} TB/s, matrix product {rate / 1e12:.1f} TFLOP/s")
    facts = {
        **report.versions(device),
        "copy_bytes_per_s": f"{copied:.4g}",
        "matrix_flop_per_s": f"{rate:.4g}",
        "rounds": str(rounds),
    }
    folder = Path(options.out) if options.out else None if options.dry_run else RESULTS
    results: list[Result] = []
    written: Sequence[Path] = ()
    for shape in todo:
        results += _compare(shape, ours, device, dtype, rounds, copied, rate, options.compile)
        if folder is not None:  # after each shape: a run that is cut off loses only the one it was at
            written = report.write(folder, results, table, report.bars(results, table), facts)
    print("\nbars")
    for bar in report.bars(results, table):
        print(f"  {'met    ' if bar.met else 'NOT MET'}  {bar.name}: {bar.found} (wanted: {bar.wanted})")
    print("\n" + ("\n".join(map(str, written)) or "dry run: nothing written (give --out to see the files)"))
    return 0


def _compare(
    shape: Shape,
    ours: Operations,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    copied: float,
    rate: float,
    compile_: bool,
) -> list[Result]:
    """All contestants at one shape, cold and hot."""
    contestants.forget_compiled()
    field: list[Contestant]
    if shape.hidden:
        field = contestants.hidden_contestants(contestants.from_hidden(shape, device, dtype), ours, compile_)
    else:
        field = contestants.logits_contestants(contestants.from_logits(shape, device, dtype), ours, compile_)
    print(f"\n{shape}")
    results = []
    # A peer that torch.compile gives up on has to be seen to fail, not timed as eager code.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        works, memory, why = _admitted(field, device)
        for cache in ("cold", "hot"):
            timings, failed = clock.measure(works, device, rounds, cold=cache == "cold")
            for name, error in failed.items():
                if name.startswith("ours"):
                    raise error
                why[name] = _failure(error)
                del works[name]
            made = [
                _result(shape, c, cache, timings.get(c.name), why, memory, device, dtype, copied, rate) for c in field
            ]
            results += report.beside_ours(made)
    for result in results:
        if result.cache == "cold":
            _print_result(result)
    return results


def _admitted(
    field: Sequence[Contestant], device: torch.device
) -> tuple[dict[str, clock.Work], dict[str, int], dict[str, str]]:
    """Those that run and give the right gradient, the memory they take, and why the others are left out."""
    works: dict[str, clock.Work] = {}
    memory: dict[str, int] = {}
    why = {c.name: f"absent: {c.why}" for c in field if c.work is None}
    ours: torch.Tensor | None = None
    for contestant in field:
        if contestant.work is None:
            continue
        try:
            memory[contestant.name] = clock.extra_memory(contestant.work, device)
            gradient = contestant.work()
            if ours is None:
                ours = gradient
            wanted = ours if contestant.wanted is None else contestant.wanted()
            unchecked = not contestant.same_work and contestant.wanted is None
            right = unchecked or accuracy.same_gradient(gradient, wanted)
        except Exception as error:  # a peer of another version: reported, not fatal; ours must not fail
            if contestant.name.startswith("ours"):
                raise
            why[contestant.name] = _failure(error)
            continue
        if right:
            works[contestant.name] = contestant.work
        elif contestant.name.startswith("ours"):
            raise accuracy.Failed(f"{contestant.name}: its gradient differs from our other implementations")
        else:
            why[contestant.name] = "failed: another gradient"
    return works, memory, why


def _failure(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


def _result(
    shape: Shape,
    contestant: Contestant,
    cache: str,
    timing: clock.Timing | None,
    why: dict[str, str],
    memory: dict[str, int],
    device: torch.device,
    dtype: torch.dtype,
    copied: float,
    rate: float,
) -> Result:
    """One line of times.csv, but for how it compares with ours."""
    seconds = None if timing is None else timing.median * 1e-3
    moved, flop = _least(shape, torch.finfo(dtype).bits // 8)
    return Result(
        "head" if shape.hidden else "logits",
        shape.tokens,
        shape.hidden,
        shape.vocabulary,
        contestant.name,
        cache,
        why.get(contestant.name, "measured"),
        contestant.note,
        contestant.same_work,
        contestant.stores_logits,
        None if timing is None else timing.median,
        None if timing is None else timing.p10,
        None if timing is None else timing.p90,
        None if timing is None else timing.replayed,
        memory.get(contestant.name) if device.type == "cuda" else None,
        None if seconds is None or shape.hidden else moved / seconds / copied,
        None if seconds is None or not shape.hidden else flop / seconds / rate,
    )


def _least(shape: Shape, itemsize: int) -> tuple[int, int]:
    """(bytes, FLOP) the work cannot do without: 4*T*V elements from logits, 3 products from hidden states."""
    return 4 * shape.tokens * shape.vocabulary * itemsize, 3 * 2 * shape.tokens * shape.hidden * shape.vocabulary


def _print_result(result: Result) -> None:
    if result.median_ms is None:
        print(f"  {result.contestant:32} {result.status}")
        return
    share = result.matrix_share if result.hidden else result.copy_share
    memory = "" if result.extra_bytes is None else f"  {result.extra_bytes / 2**20:9.1f} MiB"
    of = "of the matrix rate" if result.hidden else "of the copy bandwidth"
    timed = f"{result.median_ms:9.3f} ms ({result.p10_ms:.3f} to {result.p90_ms:.3f})"
    if result.times_ours is not None:
        timed += f"  {result.times_ours:6.2f} x ours"
    print(f"  {result.contestant:32} {timed}  {share:6.1%} {of}{memory}  {result.note}")


def _print_accuracy(table: Sequence[accuracy.K3Error]) -> None:
    print("\nrelative error of the mean k3 against float64 (logits bf16)")
    print(f"  {'apart':>7} {'mean k3':>10} {'ours':>9} {'torch fp32':>10} {'bf16 log_softmax':>17}")
    for row in table:
        errors = f"{row.ours:9.1e} {row.torch_float32:10.1e} {row.torch_bfloat16:17.1e}"
        print(f"  {row.apart:7.3f} {row.mean_k3:10.2e} {errors}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.benchmark", description=(__doc__ or "").split("\n")[0])
    add: Callable[..., object] = parser.add_argument
    add("--rounds", type=int, default=50, help="timed runs of each contestant (default 50)")
    add("--only", help="shapes whose text (e.g. '4608 x 16384') contains this")
    add("--out", help="folder for times.csv, accuracy.csv, bars.csv, times.png (default kernels/results)")
    add("--overwrite", action="store_true", help="write over the earlier output that --out holds")
    add("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    add("--dry-run", action="store_true", help="tiny shapes and plain torch on the CPU; times mean nothing")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
