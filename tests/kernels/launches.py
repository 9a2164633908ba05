"""Launches every kernel as on an H100 / H200, up to the call of the driver, without a card.

Run as a process of its own, in which Triton does not interpret: ``python tests/kernels/launches.py`` prints one JSON
object ``{"launched": {kernel: launches}, "compiled_again": [kernel, ...]}``. Arguments are bound and specialised,
options and the kernels' globals checked by Triton itself; only its compiler (see sm90.py) and the driver stand in.
"""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels import Objective
from kernels.triton import decoding, heads, statistics
from kernels.triton.sampling import sample_tokens

ROWS, TOKENS, VOCABULARY, FEATURES = 2, 3, 16_384, 16
launched: Counter[str] = Counter()
compiled: list[str] = []


def compile_nothing(kernel: Any, key: Any, _signature: Any, device: Any, *_: Any, **__: Any) -> Any:
    """In the compiler's place: what is launched is counted."""
    compiled.append(kernel.__name__)
    assert kernel.cache_key  # collects the globals, as compiling does
    made = SimpleNamespace(
        run=lambda *_: launched.update([kernel.__name__]),
        launch_metadata=lambda *_: None,
        function=None,
        packed_metadata=None,
    )
    kernel.device_caches[device][0][key] = made
    return made


def backward(*outputs: torch.Tensor | None) -> None:
    """Through all that have a graph."""
    torch.stack([x.sum() for x in outputs if x is not None and x.requires_grad]).sum().backward()


def from_logits() -> None:
    """Op 1 by estimator and by exact KL, guided and not, and beside ready-made log-probs."""
    logits, ref, free, ref_free = torch.randn(4, ROWS, TOKENS, VOCABULARY, dtype=torch.bfloat16)
    ids = torch.zeros((ROWS, TOKENS), dtype=torch.int64)
    logits.requires_grad_()
    free.requires_grad_()
    backward(*statistics.token_statistics(logits, ids, ref_logits=ref))
    guided = {"unconditional": free, "ref_unconditional": ref_free, "guidance_scale": 5.0, "unconditional_grad": True}
    backward(*statistics.token_statistics(logits, ids, ref_logits=ref, kl="exact", **guided))
    backward(*statistics.token_statistics(logits, ids, ref_logp=torch.zeros(ROWS, TOKENS), entropy=False))


def from_features() -> None:
    """Ops 2 and 3."""
    features, ref = torch.randn(2, ROWS, TOKENS, FEATURES, dtype=torch.bfloat16)
    weight, bias = (
        torch.randn(VOCABULARY, FEATURES, dtype=torch.bfloat16),
        torch.zeros(VOCABULARY, dtype=torch.bfloat16),
    )
    head = (features.requires_grad_(), weight, bias, torch.zeros((ROWS, TOKENS), dtype=torch.int64))
    backward(*heads.head_statistics(*head, ref_features=ref, kl="exact"))
    known = {"advantages": torch.ones(ROWS), "token_weights": torch.ones(ROWS, TOKENS), "normaliser": 6.0}
    objective = Objective(beta=0.01, entropy_bonus=0.1)
    old = torch.zeros(ROWS, TOKENS)
    backward(heads.one_pass_head(*head, objective=objective, old_logp=old, ref_logp=old, **known).loss)


def one_token() -> None:
    """Op 4 and the operations of a decode step, attention cut into shares."""
    logits = torch.randn(2, ROWS, VOCABULARY)
    uniform = torch.zeros(ROWS, dtype=torch.float64)
    sample_tokens(logits[0], uniform, unconditional=logits[1], guidance_scale=5.0, validate=False)
    sample_tokens(logits[0], uniform, top_k=50, top_p=0.9, logp_of="full", validate=False)
    heads_, head_dim, places = 32, 128, 1024
    width = heads_ * head_dim
    keys, values = torch.zeros(2, ROWS, heads_, places, head_dim, dtype=torch.bfloat16)
    angle = torch.zeros(ROWS, head_dim)
    place, first = torch.tensor([7]), torch.zeros(ROWS, dtype=torch.int64)
    x = torch.zeros(ROWS, 3 * width, dtype=torch.bfloat16)
    q = decoding.rotate_and_store(x, angle, angle, keys, values, place)
    decoding.decode_attention(q, keys, values, first, place)
    total = x[:, :width]
    decoding.add_rms_norm(total, total, torch.ones(width, dtype=torch.bfloat16), 1e-6)
    decoding.add_rms_norm(total, None, torch.ones(width, dtype=torch.bfloat16), 1e-6)
    decoding.silu_mul(x[:, : 2 * width])


def main() -> None:
    """Everything twice: the second time nothing may be compiled."""
    triton.runtime.driver.set_active(
        SimpleNamespace(  # type: ignore[arg-type]
            get_current_device=lambda: 0,
            get_current_stream=lambda _: 0,
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
        )
    )
    JITFunction._do_compile = compile_nothing  # type: ignore[assignment]
    for turn in range(2):
        first_time = len(compiled)
        for launch_all in (from_logits, from_features, one_token):
            launch_all()
        if turn:
            print(json.dumps({"launched": launched, "compiled_again": compiled[first_time:]}))


if __name__ == "__main__":
    main()
