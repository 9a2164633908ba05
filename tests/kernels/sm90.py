"""Compiles the kernels for an H100 / H200 without one, and reports what the assembler made of them.

Run as a process of its own, in which Triton does not interpret: ``python tests/kernels/sm90.py fast|all``
prints one JSON object ``{case: {registers, spill_stores, spill_loads, stack, ptx_instructions}}``. Block sizes
and warps are those that a launch takes at the real vocabularies.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
from contextlib import redirect_stdout
from functools import partial
from typing import Any, NamedTuple

# The assembler's own words, of a compilation that really happens.
os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
os.environ["TRITON_ALWAYS_COMPILE"] = "1"

import triton
from triton import next_power_of_2
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton.attention import attention_kernel, attention_launch, combine_kernel
from kernels.triton.decoding import ACTIVATIONS, ROTATED_HEADS, norm_kernel, norm_warps, rotate_kernel, silu_kernel
from kernels.triton.one_pass import SURROGATE_CODES, one_pass_kernel
from kernels.triton.rows import COMPILE_OPTIONS, KL_CODES, backward_kernel, forward_kernel, launch_shape
from kernels.triton.sampling import SAMPLING_OPTIONS, sampling_kernel, sampling_shape

POINTERS = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}
ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
FLOATS = {"w", "inverse_temperature", "c_inverse", "lowest", "highest", "beta", "bonus", "scale", "epsilon"}
WIDE = {"logits", "unconditional", "ref_logits", "ref_unconditional", "grad", "grad_unconditional"}
WIDE |= {"q", "qkv", "keys", "values", "out", "x", "delta", "weight", "total_out", "normed_out", "gate_up"}
LONG = {"first", "length", "place"}
USAGE = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


NARROW = {"ids": "*i64", "ids_out": "*i64", "uniform": "*fp64"}


def assemble(
    kernel: Any,
    dtype: str,
    absent: set[str],
    constants: dict[str, Any],
    warps: int,
    options: dict[str, Any],
    sizes: dict[str, int] | None = None,
) -> dict[str, int]:
    """Compile `kernel` with the pointer arguments `absent` left out; 16-byte aligned rows, as in training.

    sizes: integer arguments whose values are known, specialised as a launch would; others are whole blocks or not.
    """
    signature, constexprs, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants or name in absent:
            signature[name] = "constexpr"
            constexprs[(index,)] = constants.get(name)
        elif sizes is not None and name in sizes:
            signature[name] = "i32"
            if sizes[name] == 1:
                signature[name], constexprs[(index,)] = "constexpr", 1
            elif sizes[name] % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif kernel.params[index].annotation_type or name in FLOATS:
            signature[name] = kernel.params[index].annotation_type or "fp32"
        elif name in ("T", "V") or re.fullmatch(r"(c|u|rc|ru|g|gu|uniform)_[nt]", name):
            signature[name] = "i32"
            if constants["EVEN"]:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            pointer = "*i64" if name in LONG else NARROW.get(name, "*fp32")
            signature[name] = POINTERS[dtype] if name in WIDE else pointer
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs, attributes)
    with redirect_stdout(io.StringIO()) as printed:
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, **options})
    log = printed.getvalue()
    stack, stores, loads = (int(x) for x in USAGE.search(log).groups())  # type: ignore[union-attr]
    registers = int(re.search(r"Used (\d+) registers", log).group(1))  # type: ignore[union-attr]
    vector_loads = len(re.findall(r"ld\.global[.\w:]*\.v[24]", compiled.asm["ptx"]))
    return {
        "registers": registers,
        "spill_stores": stores,
        "spill_loads": loads,
        "stack": stack,
        "vector_loads": vector_loads,
    }


def row_case(
    kernel: Any, dtype: str, kl: str | None, guided: bool, vocabulary: int, entropy: bool = True, given: bool = False
) -> dict[str, int]:
    """The forward or backward kernel with everything that `kl` and guidance bring.

    entropy: measured, with a gradient. given: the reference is its ready-made log-probs.
    """
    backward = kernel is backward_kernel
    reference = kl is not None and not given and (not backward or kl == "exact")
    absent = set() if given else {"ref_logp"}
    if not entropy:
        absent |= {"entropy_out", "entropy_in", "to_entropy_in"}
    if not guided:
        absent |= {"unconditional", "ref_unconditional"}
    if not reference:
        absent |= {"ref_logits", "ref_unconditional"}
    if not guided:
        absent |= {"grad_unconditional"}
    if kl is None:
        absent |= {"ratio_out", "kl_out", "ratio_in", "kl_in", "to_kl_in", "to_ratio_in"}
    if kl != "exact":
        absent |= {"shift_out", "shift_in"}
    rows = (1 + (kl is not None and not given)) * (1 + guided) + (kl == "exact")
    shape = launch_shape(vocabulary, ITEMSIZE[dtype], rows)
    constants = {"KL": KL_CODES[kl], "BLOCK": shape.block, "EVEN": vocabulary % shape.block == 0}
    return assemble(kernel, dtype, absent, constants, shape.warps, COMPILE_OPTIONS)


def one_pass_case(
    dtype: str, kl: str | None, surrogate: str, vocabulary: int, bare: bool = False, given: bool = False
) -> dict[str, int]:
    """The one-pass kernel with its gradient, clipping and penalty.

    bare: no correction, no entropy. given: as in :func:`row_case`.
    """
    absent = {"ref_logits"} if given else {"ref_logp"} if kl else {"ref_logp", "ref_logits", "ratio_out", "kl_out"}
    if bare:
        absent |= {"correction", "entropy_out"}
    shape = launch_shape(vocabulary, ITEMSIZE[dtype], 1 + (kl is not None and not given) + (kl == "exact"))
    constants = {
        "KL": KL_CODES[kl],
        "PENALTY": kl is not None,
        "BONUS": not bare,
        "SURROGATE": SURROGATE_CODES[surrogate],
        "GRADIENT": True,
        "BLOCK": shape.block,
        "EVEN": vocabulary % shape.block == 0,
    }
    return assemble(one_pass_kernel, dtype, absent, constants, shape.warps, COMPILE_OPTIONS)


def sampling_case(dtype: str, guided: bool, top_k: bool, top_p: bool, full: bool, vocabulary: int) -> dict[str, int]:
    """The sampling kernel; with a threshold or two it searches before it draws."""
    shape = sampling_shape(vocabulary)
    constants = {
        "TOP_K": top_k,
        "TOP_P": top_p,
        "FULL": full,
        "BLOCK": shape.block,
        "EVEN": vocabulary % shape.block == 0,
    }
    absent = set() if guided else {"unconditional"}
    return assemble(sampling_kernel, dtype, absent, constants, shape.warps, SAMPLING_OPTIONS)


PLACES, MULTIPROCESSORS = 1000, 132


class Trunk(NamedTuple):
    """What a decode step's kernels are compiled for: rows, query heads a key-value head, sizes of the trunk."""

    name: str
    rows: int
    heads: int
    group: int
    head_dim: int
    mlp: int

    @property
    def strides(self) -> dict[str, int]:
        """Of cache and projections."""
        row = {"s": self.head_dim, "h": PLACES * self.head_dim, "n": self.kv_heads * PLACES * self.head_dim}
        made = {f"{tensor}_{axis}": stride for tensor in "kv" for axis, stride in row.items()}
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        one = {"cos_n": self.head_dim, "sin_n": self.head_dim, "q_h": self.head_dim, "qkv_n": qkv}
        width = self.heads * self.head_dim
        return made | one | {"q_n": width, "x_n": width, "delta_n": width, "gate_up_n": 2 * self.mlp}

    @property
    def kv_heads(self) -> int:
        return self.heads // self.group

    @property
    def sizes(self) -> dict[str, int]:
        """Integer arguments by name, the same in all kernels that have them."""
        counts = {"KV_HEADS": self.kv_heads, "QUERY_HEADS": self.heads, "GROUP": self.group, "S": PLACES}
        widths = {"D": self.head_dim, "HALF": self.head_dim // 2, "H": self.heads * self.head_dim, "WIDTH": self.mlp}
        return self.strides | counts | widths


TRUNKS = {
    "7B": Trunk("7B", 32, 32, 1, 128, 11_008),
    "1B": Trunk("1B", 32, 16, 1, 128, 5632),
    "one row of 7B": Trunk("one row of 7B", 1, 32, 1, 128, 11_008),
    "grouped": Trunk("grouped", 32, 32, 4, 128, 14_336),
    "many a group": Trunk("many a group", 32, 32, 8, 64, 8192),
    "tiny": Trunk("tiny", 4, 2, 1, 24, 96),
}


def step_case(kernel: Any, dtype: str, trunk: Trunk) -> dict[str, int]:
    """A kernel of the decode step at a trunk's sizes, cut as a launch on an H100 or H200 cuts it."""
    launch = attention_launch(trunk.rows, trunk.kv_heads, trunk.group, PLACES, trunk.head_dim, MULTIPROCESSORS)
    block_d, width = next_power_of_2(trunk.head_dim), next_power_of_2(trunk.heads * trunk.head_dim)
    shapes: dict[Any, tuple[dict[str, int], int]] = {
        attention_kernel: (
            {"SPLITS": launch.splits, "HEADS": launch.heads, "BLOCK": launch.block, "BLOCK_D": block_d},
            launch.warps,
        ),
        combine_kernel: (
            {"SPLITS": launch.splits, "BLOCK_SPLITS": next_power_of_2(launch.splits), "BLOCK_D": block_d},
            1,
        ),
        rotate_kernel: ({"HEADS": ROTATED_HEADS, "BLOCK": block_d // 2}, 2),
        norm_kernel: ({"BLOCK": width}, norm_warps(width)),
        silu_kernel: ({"BLOCK": ACTIVATIONS}, 4),
    }
    constants, warps = shapes[kernel]
    absent: set[str] = set()
    if kernel is attention_kernel:
        absent = {"partial", "tops", "totals"} if launch.splits == 1 else {"out"}
    return assemble(kernel, dtype, absent, constants, warps, COMPILE_OPTIONS, trunk.sizes)


def step_cases(which: str) -> dict[str, Any]:
    """Of the decode step, as :func:`cases`; combining only where attention is cut into shares."""
    made: dict[str, Any] = {}
    kernels = {
        "attention": attention_kernel,
        "rotate": rotate_kernel,
        "norm": norm_kernel,
        "silu": silu_kernel,
        "combine": combine_kernel,
    }
    fast = [("bf16", "7B"), ("bf16", "one row of 7B")]
    for dtype, trunk in fast if which == "fast" else [(d, t) for d in ITEMSIZE for t in TRUNKS]:
        for name, kernel in kernels.items():
            split = trunk in ("one row of 7B", "grouped")
            if name == "attention" or (split if name == "combine" else trunk == "7B" or which == "all"):
                made[f"{name} {dtype} {trunk}"] = partial(step_case, kernel, dtype, TRUNKS[trunk])
    return made


def cases(which: str) -> dict[str, Any]:
    """Case name -> what compiles it. fast: the heaviest of each kernel; all: the grid.

    16,384 stands for 102,400, too: both are whole blocks, so it is the same program. 100,015 is not.
    """
    made: dict[str, Any] = {}
    grid = [("bf16", "k3", False, 16_384), ("bf16", "exact", True, 16_384)]
    if which == "all":
        kinds = (None, "k1", "k2", "k3", "exact")
        grid = [(d, kl, g, v) for d in ITEMSIZE for kl in kinds for g in (False, True) for v in (16_384, 100_015)]
    for dtype, kl, guided, vocabulary in grid:
        for kernel, name in ((forward_kernel, "forward"), (backward_kernel, "backward")):
            made[f"{name} {dtype} kl={kl} guided={guided} V={vocabulary}"] = partial(
                row_case, kernel, dtype, kl, guided, vocabulary
            )
    objectives = [("exact", "clipped", "bf16")]
    if which == "all":
        objectives = [(kl, s, d) for kl in (None, "k3", "exact") for s in SURROGATE_CODES for d in ("bf16", "fp32")]
    for kl, surrogate, dtype in objectives:
        name = f"one pass {dtype} kl={kl} surrogate={surrogate} V=16384"
        made[name] = partial(one_pass_case, dtype, kl, surrogate, 16_384)
    # As training and the benchmark launch them, with less.
    for given in (False, True) if which == "all" else (True,):
        name = f"bf16 kl=k3 bare given={given} V=16384"
        made[f"one pass {name}"] = partial(one_pass_case, "bf16", "k3", "clipped", 16_384, True, given)
        made[f"forward {name}"] = partial(row_case, forward_kernel, "bf16", "k3", False, 16_384, False, given)
        made[f"backward {name}"] = partial(row_case, backward_kernel, "bf16", "k3", False, 16_384, False, given)
    draws = [("bf16", True, False, False, True, 16_384), ("bf16", True, True, True, True, 16_384)]
    if which == "all":
        flags = [(g, k, p, f) for g in (False, True) for k, p, f in ((0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0))]
        draws = [
            (d, g, bool(k), bool(p), bool(f), v) for d in ITEMSIZE for g, k, p, f in flags for v in (16_384, 100_015)
        ]
    for dtype, guided, top_k, top_p, full, vocabulary in draws:
        name = f"sampling {dtype} guided={guided} top_k={top_k} top_p={top_p} V={vocabulary}"
        made[name] = partial(sampling_case, dtype, guided, top_k, top_p, full, vocabulary)
    return made | step_cases(which)


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "fast"
    print(json.dumps({name: compile_case() for name, compile_case in cases(chosen).items()}, indent=1))
