"""Out of memory in the update: half the microbatch, the same objective; where nothing helps, an error that does."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.cli.command import run
from src.cli.compose import Command
from src.policies.base import EngineSettings
from src.training.module import BiCoTModule
from src.training.out_of_memory import DoesNotFit, give_up_cache, is_out_of_memory, memory_told, smaller_microbatch
from src.values import PLAN
from tests.policies.toy import ToyPolicy
from tests.training.lightning_pieces import fit, toy_module
from tests.training.pieces import assert_same_gradients, gradients

REASON = "CUDA out of memory. Tried to allocate 20.00 GiB"


class TooMuch(torch.autograd.Function):
    """The identity, whose backward pass runs out of memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise torch.OutOfMemoryError(REASON)


class Limited(BiCoTModule):
    """Runs out of memory in the forward or backward pass of a part of more than `limit` rollouts.

    `calls` are the sizes tried; `left` how many parts pass before the memory runs out; `alive` how many losses of
    failed attempts are still alive when the next one begins.
    """

    limit = 3
    where = "forward"
    passed_before = 0
    text: str | None = None  # of a CPU's error; None: a GPU's

    def training_step(self, batch: Any, batch_idx: int = 0) -> Any:
        size = len(batch.levels[PLAN])
        self.alive.append(sum(ref() is not None for ref in self.failed))
        self.calls.append(size)
        loss, metrics, logps = super().training_step(batch, batch_idx)
        if size <= self.limit or self.left > 0:
            self.left -= 1
            return loss, metrics, logps
        self.left = self.passed_before
        if self.where == "backward":
            loss = TooMuch.apply(loss)
        self.failed.append(weakref.ref(loss))
        if self.where == "forward":
            raise torch.OutOfMemoryError(REASON) if self.text is None else RuntimeError(self.text)
        return loss, metrics, logps

    def collect(self, batch: Any) -> Any:
        self.collects += 1
        return super().collect(batch)


def limited(where: str = "forward", passed_before: int = 0, limit: int = 3, **settings: Any) -> Any:
    module: Any = toy_module(**settings)
    module.__class__ = Limited
    module.limit, module.where, module.passed_before, module.left = limit, where, passed_before, passed_before
    module.calls, module.failed, module.alive, module.collects = [], [], [], 0
    return module


def first_gradients(module: Any, folder: Path) -> dict[str, Tensor]:
    """Those of the first step, before clipping."""
    found: list[dict[str, Tensor]] = []
    module.on_before_optimizer_step = lambda optimizer: found.append(gradients(module.policy))
    fit(module, folder)
    return found[0]


@pytest.mark.parametrize(("where", "passed_before"), [("forward", 0), ("forward", 1), ("backward", 0), ("backward", 1)])
def test_the_replayed_step_is_the_undisturbed_one(tmp_path: Path, where: str, passed_before: int) -> None:
    """Also where parts before had added their gradients already."""
    settings = {"max_steps": 1, "microbatch": 6, "grad_clip": 1e9}
    module = limited(where, passed_before, policy=ToyPolicy(dtype=torch.float64), **settings)
    twin = toy_module(policy=copy.deepcopy(module.policy), **settings)  # type: ignore[arg-type]
    with pytest.warns(RuntimeWarning, match=r"microbatch of 6 rollouts: from here on 3.*optim\.microbatch=3"):
        replayed = first_gradients(module, tmp_path / "a")
    assert_same_gradients(replayed, first_gradients(twin, tmp_path / "b"))
    assert module.calls == [6] * (passed_before + 1) + [3] * 4
    assert module.collects == 1, "the rollouts are kept"
    assert max(module.alive) == 0, "the graph of the failed attempt is gone before the next begins"


def test_the_smaller_size_stays_and_is_said_once(tmp_path: Path) -> None:
    """All at once (12) -> 6 -> 3 in the first step; the second begins with 3."""
    module = limited(max_steps=3, updates=1)
    with pytest.warns(RuntimeWarning) as caught:
        fit(module, tmp_path)
    assert [str(w.message).split(":")[0] for w in caught if "out of memory" in str(w.message)] == [
        "out of memory at a microbatch of 12 rollouts",
        "out of memory at a microbatch of 6 rollouts",
    ]
    assert module.calls == [12, 6] + [3] * 12
    assert module.step_metrics["microbatch"] == 3
    assert module.microbatch == 3


def test_a_later_update_on_the_same_rollouts_is_replayed_alone(tmp_path: Path) -> None:
    module = limited(passed_before=1, limit=6, max_steps=2, updates=2)
    with pytest.warns(RuntimeWarning, match="12 rollouts"):
        fit(module, tmp_path)
    assert module.calls == [12, 12, 6, 6], "the first update went through"
    assert module.collects == 1


def test_one_rollout_that_does_not_fit_names_step_and_keys(tmp_path: Path) -> None:
    module = limited(limit=0, max_steps=2, microbatch=2)
    with (
        pytest.warns(RuntimeWarning, match="from here on 1"),
        pytest.raises(
            DoesNotFit, match=r"step 0: .*microbatch=1.*activation_checkpointing=true.*split_levels=true.*20.00 GiB"
        ),
    ):
        fit(module, tmp_path)


def test_several_processes_do_not_go_on(recwarn: pytest.WarningsRecorder) -> None:
    """The others are inside the same backward pass: one that replays alone would leave them waiting."""
    with pytest.raises(DoesNotFit, match=r"one of 2 processes at optim\.microbatch=8: set it lower"):
        smaller_microbatch(8, 16, 2, torch.OutOfMemoryError(REASON))
    assert not [w for w in recwarn if "out of memory" in str(w.message)]


@pytest.mark.parametrize(("size", "rollouts", "half"), [(16, 16, 8), (100, 16, 8), (3, 16, 2), (2, 16, 1)])
@pytest.mark.filterwarnings("ignore:out of memory")
def test_half_of_what_was_tried(size: int, rollouts: int, half: int) -> None:
    assert smaller_microbatch(size, rollouts, 1, torch.OutOfMemoryError(REASON)) == half


def test_rollouts_that_do_not_fit_name_step_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = toy_module(max_steps=2)

    def collect(batch: Any) -> Any:
        raise torch.OutOfMemoryError(REASON)

    monkeypatch.setattr(module, "collect", collect)
    with pytest.raises(DoesNotFit, match=r"step 0: .*rolling out.*rollout\.prompts_per_step.*20.00 GiB"):
        fit(module, tmp_path)


def test_the_rollouts_cache_goes_before_the_microbatch_shrinks(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A policy with an engine keeps its cache from step to step; the update may need that memory."""
    module = limited(limit=4)
    module.policy.engine, released = EngineSettings(), []
    module.policy.release_cache = lambda: released.append(True)
    fit(module, tmp_path)
    whole = module.calls[0]
    assert module.calls[:3] == [whole, whole, whole // 2], "the same once more, then half"
    assert released == [True]
    assert not module.policy.engine.reuse_cache
    assert sum("makes its cache anew" in str(w.message) for w in recwarn) == 1
    assert not give_up_cache(module.policy, 1), "only once"


def test_nothing_is_given_up_by_one_of_several_processes_nor_without_an_engine() -> None:
    toy = ToyPolicy()
    assert not give_up_cache(toy, 1)
    toy.engine, toy.release_cache = EngineSettings(), lambda: None  # type: ignore[assignment]
    assert not give_up_cache(toy, 2)
    assert toy.engine.reuse_cache


def cpu_out_of_memory() -> RuntimeError:
    """torch's own error for 4 EiB on a CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    return caught.value


def test_want_of_memory_is_known_by_any_library_that_says_so() -> None:
    cuda = [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
    ]
    for error in (cpu_out_of_memory(), MemoryError(), torch.OutOfMemoryError(REASON), *map(RuntimeError, cuda)):
        assert is_out_of_memory(error), error
    others = [
        RuntimeError("size mismatch"),
        ValueError("out of memory"),
        RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"),
    ]
    for other in others:
        assert not is_out_of_memory(other), other


def test_a_cpu_halves_the_microbatch_as_a_gpu_does(tmp_path: Path) -> None:
    module = limited(max_steps=1, microbatch=6)
    module.text = str(cpu_out_of_memory())
    with pytest.warns(RuntimeWarning, match=r"microbatch of 6 rollouts: from here on 3"):
        fit(module, tmp_path)
    assert module.calls == [6, 3, 3, 3, 3]


def test_the_message_has_the_sizes_and_what_to_lower() -> None:
    told = r"out of memory while painting: lower n \(.*GiB wanted.*GiB of the machine's"
    with pytest.raises(DoesNotFit, match=told), memory_told("while painting: lower n"):
        torch.empty(2**62, dtype=torch.uint8)
    # What is not want of memory passes as it is.
    with pytest.raises(KeyError), memory_told("never"):
        raise KeyError("x")


def test_every_command_says_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def task(_: Any) -> int:
        torch.empty(2**62, dtype=torch.uint8)
        return 0

    assert run(Command("generate", "", (), task, config="generate"), []) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory: lower batch_size")
    assert told.count("\n") == 1
