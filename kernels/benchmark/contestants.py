"""Ours and the peers, each as a piece of work on the same tensors: forward and backward, nothing left out.

From logits: log-probs of policy and reference, k3, and the gradient with respect to the policy's logits for given
gradients of log-prob and KL. From hidden states: the clipped objective with k3, and the gradient with respect to
the policy's hidden states; the head is frozen and old log-probs are given. A peer that computes more because it
cannot do otherwise (a weight gradient), or less (no reference), says so in its note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import Objective, Operations, reference
from kernels.one_pass import one_pass_head as one_pass_in_torch
from kernels.one_pass import rows_in_torch

BETA, CLIP = 0.01, 0.2
# Tokens a chunk of the plain-torch peers, and rollouts a chunk of Liger's, of which the best counts.
PLAIN_CHUNK = 1024
LIGER_CHUNKS = (1, 2, 4)


class Shape(NamedTuple):
    """T tokens of a vocabulary of V; H features of the head, 0 for an operation from logits."""

    tokens: int
    vocabulary: int
    hidden: int = 0

    def __str__(self) -> str:
        return " x ".join(str(size) for size in (self.tokens, self.hidden, self.vocabulary) if size)


@dataclass(frozen=True)
class Contestant:
    """`work` gives the gradient; it is None where the peer is absent, and `why` then says why.

    same_work: its gradient has to be ours. `wanted()`: what it has to be instead, where the peer takes other upstream
    gradients or does other work.
    """

    name: str
    work: Callable[[], Any] | None
    why: str = ""
    note: str = ""
    same_work: bool = True
    stores_logits: bool = True
    wanted: Callable[[], Tensor] | None = None


class FromLogits(NamedTuple):
    """One rollout of T tokens, in the dtype of training."""

    logits: Tensor
    ref_logits: Tensor
    ids: Tensor
    to_logp: Tensor
    to_kl: Tensor


class FromHidden(NamedTuple):
    """One rollout of T tokens as hidden states, with a frozen head and bias."""

    features: Tensor
    ref_features: Tensor
    weight: Tensor
    bias: Tensor
    ids: Tensor
    advantages: Tensor
    old_logp: Tensor
    weights: Tensor


def from_logits(shape: Shape, device: torch.device, dtype: torch.dtype) -> FromLogits:
    """Random logits, spread like a trained model's, the reference 0.1 away."""
    generator = torch.Generator(device).manual_seed(0)
    size = (1, shape.tokens, shape.vocabulary)
    logits = 2 * torch.randn(size, device=device, dtype=torch.float32, generator=generator)
    ref = (logits + 0.1 * torch.randn(size, device=device, generator=generator)).to(dtype)
    ids = torch.randint(shape.vocabulary, size[:2], device=device, generator=generator)
    upstream = torch.randn(2, *size[:2], device=device, generator=generator)
    return FromLogits(logits.to(dtype).requires_grad_(), ref, ids, upstream[0], upstream[1])


def from_hidden(shape: Shape, device: torch.device, dtype: torch.dtype) -> FromHidden:
    """Random hidden states and head, logits of about 2 in size."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, device=device, generator=generator)).to(dtype)

    features = draw(1, shape.tokens, shape.hidden)
    ids = torch.randint(shape.vocabulary, (1, shape.tokens), device=device, generator=generator)
    weight, bias = draw(shape.vocabulary, shape.hidden, scale=2 * shape.hidden**-0.5), draw(shape.vocabulary)
    with torch.no_grad():
        logp = reference.head_statistics(features, weight, bias, ids, kl=None, entropy=False, chunk_size=256).logp
    return FromHidden(
        features.clone().requires_grad_(),
        features + draw(1, shape.tokens, shape.hidden, scale=0.05),
        weight,
        bias,
        ids,
        torch.ones(1, device=device),
        logp + 0.05,
        torch.ones(1, shape.tokens, device=device),
    )


def logits_contestants(data: FromLogits, ours: Operations | None, compile_: bool) -> list[Contestant]:
    """Everyone who starts from logits."""
    options = {"kl": "k3", "entropy": False, "validate": False}

    def statistics(operation: Callable[..., Any], to_logp: Tensor = data.to_logp, to_kl: Tensor = data.to_kl) -> Tensor:
        result = operation(data.logits, data.ids, ref_logits=data.ref_logits, **options)
        return torch.autograd.grad((result.logp, result.kl), data.logits, (to_logp, to_kl))[0]

    def of_logp(logp: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        policy = logp(data.logits, data.ids)
        with torch.no_grad():
            fixed = logp(data.ref_logits, data.ids)
        d = fixed - policy
        return torch.autograd.grad((policy, d.exp() - d - 1), data.logits, (data.to_logp, data.to_kl))[0]

    def of_loss() -> Tensor:
        """A loss of -logp + BETA * k3 a token, weighted as Liger's is."""
        return statistics(reference.token_statistics, -data.to_logp, BETA * data.to_logp)

    eager = Contestant("eager torch", lambda: statistics(reference.token_statistics))
    made = [_ours("ours: op 1", ours, lambda operations: statistics(operations.token_statistics)), eager]
    made.append(_compiled("torch.compile", compile_, lambda: of_logp(_compile(_logp_in_float32))))
    made.append(_peer("TRL selective log-softmax", _trl, of_logp))
    made.append(_peer("Liger GRPO loss (Triton)", _liger_logits, lambda run: run(data), wanted=of_loss))
    return made


def hidden_contestants(data: FromHidden, ours: Operations | None, compile_: bool) -> list[Contestant]:
    """Everyone who starts from hidden states."""
    tokens = data.ids.shape[1]
    objective = Objective(clip_low=CLIP, clip_high=CLIP, beta=BETA, kl="k3", entropy=False)

    def loss_of(logp: Tensor, kl: Tensor) -> Tensor:
        ratio, advantage = (logp - data.old_logp).exp(), data.advantages[:, None]
        clipped = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        return -(data.weights * (clipped - BETA * kl)).sum() / tokens

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, data.features)[0]

    def one_pass(operation: Callable[..., Any], **more: Any) -> Tensor:
        return gradient(
            operation(
                data.features,
                data.weight,
                data.bias,
                data.ids,
                objective=objective,
                advantages=data.advantages,
                token_weights=data.weights,
                normaliser=float(tokens),
                old_logp=data.old_logp,
                ref_features=data.ref_features,
                validate=False,
                once=True,
                **more,
            ).loss
        )

    def chunked(operation: Callable[..., Any], **more: Any) -> Tensor:
        result = operation(
            data.features,
            data.weight,
            data.bias,
            data.ids,
            ref_features=data.ref_features,
            kl="k3",
            entropy=False,
            validate=False,
            **more,
        )
        return gradient(loss_of(result.logp, result.kl))

    def stored(operation: Callable[..., Any], **more: Any) -> Tensor:
        logits = torch.nn.functional.linear(data.features, data.weight, data.bias)
        with torch.no_grad():
            ref_logits = torch.nn.functional.linear(data.ref_features, data.weight, data.bias)
        result = operation(logits, data.ids, ref_logits=ref_logits, kl="k3", entropy=False, validate=False, **more)
        return gradient(loss_of(result.logp, result.kl))

    def labelled(linear_cross_entropy: Callable[[FromHidden], Tensor]) -> Tensor:
        return gradient(linear_cross_entropy(data))

    def labelled_in_torch() -> Tensor:
        logits = torch.nn.functional.linear(data.features[0], data.weight)
        return gradient(torch.nn.functional.cross_entropy(logits, data.ids[0]))

    def frugal(name: str, run: Callable[[Operations], Tensor]) -> Contestant:
        made = _ours(name, ours, run)
        return Contestant(made.name, made.work, made.why, stores_logits=False)

    return [
        frugal("ours: op 3, one pass", lambda operations: one_pass(operations.one_pass_head)),
        frugal("ours: op 2, chunked", lambda operations: chunked(operations.head_statistics)),
        _ours("stored logits + op 1", ours, lambda o: stored(o.token_statistics, **_in_place(o))),
        Contestant("stored logits, eager torch", lambda: stored(reference.token_statistics)),
        Contestant(
            "one pass in plain torch",
            lambda: one_pass(one_pass_in_torch),
            note="all tokens at once",
            stores_logits=True,
        ),
        _compiled("stored logits, torch.compile", compile_, lambda: stored(_compile(reference.token_statistics))),
        Contestant(
            "chunked, eager torch",
            lambda: chunked(reference.head_statistics, chunk_size=PLAIN_CHUNK),
            stores_logits=False,
        ),
        _compiled(
            "chunked, torch.compile",
            compile_,
            lambda: chunked(_compile(reference.head_statistics), chunk_size=PLAIN_CHUNK),
            stores_logits=False,
        ),
        Contestant(
            "one pass in plain torch, chunked",
            lambda: one_pass(one_pass_in_torch, chunk_size=PLAIN_CHUNK),
            stores_logits=False,
        ),
        _compiled(
            "one pass, chunked, torch.compile",
            compile_,
            lambda: one_pass(one_pass_in_torch, chunk_size=PLAIN_CHUNK, rows=_compile(rows_in_torch)),
            stores_logits=False,
        ),
        *(
            _peer(
                f"Liger fused-linear GRPO, {size} a chunk",
                partial(_liger_linear, size),
                lambda run: gradient(run(data)),
                note="chunks of whole rollouts",
                stores_logits=False,
            )
            for size in LIGER_CHUNKS
        ),
        _peer(
            "quack linear cross-entropy",
            _quack,
            labelled,
            note="labelled cross-entropy only: no reference, no KL, no bias",
            same_work=False,
            stores_logits=False,
            wanted=labelled_in_torch,
        ),
        _peer(
            "Apple cut-cross-entropy",
            _cut,
            labelled,
            note="labelled cross-entropy only: no reference, no KL, no bias",
            same_work=False,
            stores_logits=False,
            wanted=labelled_in_torch,
        ),
    ]


def _ours(name: str, ours: Operations | None, run: Callable[[Operations], Any]) -> Contestant:
    if ours is None:
        return Contestant(name, None, "the Triton operations cannot run on this device")
    return Contestant(name, lambda: run(ours))


def _in_place(operations: Operations) -> dict[str, bool]:
    """The Triton operation may write its gradient over the logits it was given."""
    return {"overwrite": True} if operations.name == "triton" else {}


def _peer(name: str, find: Callable[[], Any], run: Callable[[Any], Any], **facts: Any) -> Contestant:
    """`find` imports the peer; one that is not installed is absent, whatever the reason."""
    try:
        found = find()
    except Exception as error:  # its import may die of anything: a missing driver, another torch
        return Contestant(name, None, f"not installed or not importable: {type(error).__name__}: {error}", **facts)
    return Contestant(name, lambda: run(found), **facts)


def _compiled(name: str, wanted: bool, run: Callable[[], Any], **facts: Any) -> Contestant:
    return Contestant(name, run, **facts) if wanted else Contestant(name, None, "left out (--no-compile)", **facts)


_COMPILED: dict[Any, Any] = {}


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile, once for each function."""
    if function not in _COMPILED:
        _COMPILED[function] = torch.compile(function, dynamic=False)
    return _COMPILED[function]


def forget_compiled() -> None:
    """Compile anew from here on: else many shapes one after another reach torch's limit of recompilations."""
    torch.compiler.reset()
    _COMPILED.clear()


def _logp_in_float32(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _trl() -> Callable[[Tensor, Tensor], Tensor]:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax


def _liger_logits() -> Callable[[FromLogits], Any]:
    """Liger takes (B, L + 1, V) and leaves the last place out: one token more than counts."""
    from liger_kernel.ops.grpo_loss import fused_selective_log_softmax
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    longer: dict[int, tuple[Tensor, Tensor]] = {}

    def run(data: FromLogits) -> Any:
        if id(data) not in longer:
            pad = (0, 0, 0, 1)
            policy = torch.nn.functional.pad(data.logits.detach(), pad).requires_grad_()
            longer[id(data)] = policy, torch.nn.functional.pad(data.ref_logits, pad)
        logits, ref_logits = longer[id(data)]
        ref = fused_selective_log_softmax(ref_logits, data.ids, 1.0)
        advantages = data.to_logp.new_ones(1)
        loss, *_ = triton_grpo_loss(
            logits,
            None,
            ref,
            data.ids,
            advantages,
            temperature=1.0,
            beta=BETA,
            eps_low=CLIP,
            eps_high=CLIP,
            inplace=False,
        )
        return torch.autograd.grad(loss, logits, data.to_logp)[0][:, :-1]

    return run


def _liger_linear(chunk_size: int) -> Callable[[FromHidden], Tensor]:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    module = LigerFusedLinearGRPOLoss(
        beta=BETA, epsilon_low=CLIP, epsilon_high=CLIP, temperature=1.0, chunk_size=chunk_size
    )

    def run(data: FromHidden) -> Tensor:
        """Liger chunks over rollouts, so the tokens are given as rollouts of 576, an image each."""
        length = 576 if data.ids.shape[1] % 576 == 0 else 512 if data.ids.shape[1] % 512 == 0 else data.ids.shape[1]

        def rows(x: Tensor) -> Tensor:
            return x.reshape(-1, length, *x.shape[2:])

        loss, _ = module(
            rows(data.features),
            data.weight,
            rows(data.ids),
            rows(data.weights),
            data.advantages.expand(data.ids.shape[1] // length),
            bias=data.bias,
            old_per_token_logps=rows(data.old_logp),
            ref_input=rows(data.ref_features),
            ref_weight=data.weight,
            ref_bias=data.bias,
        )
        return loss

    return run


def _quack() -> Callable[[FromHidden], Tensor]:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda data: chunked_linear_cross_entropy(data.features[0], data.weight, data.ids[0])


def _cut() -> Callable[[FromHidden], Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    return lambda data: linear_cross_entropy(data.features, data.weight, data.ids)
