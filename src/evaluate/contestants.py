"""Which models are compared: found, checked, and switched on one base in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError
from src.config.factories import current
from src.trained import (
    check_sampling,
    checkpoint_of_model,
    find_run,
    holds_run,
    nearest_run,
    run_config,
    sampling_asked_for,
    sampling_of_run,
    source_of_run,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.policies.base import Decoder, Policy

BASE = "base"
JANUS = "src.policies.load.load_janus"


@dataclass(frozen=True, slots=True)
class Contestant:
    """One model: the base alone, with an adapter, or with the weights of a run of full fine-tuning."""

    name: str
    adapter: Path | None = None
    weights: Path | None = None
    run: Path | None = None

    @property
    def folder_name(self) -> str:
        """The name as part of a path."""
        return re.sub(r"^\.+|[^\w.-]", "_", self.name)[:100]

    def facts(self) -> dict[str, str | None]:
        """Where it comes from."""
        places = {"adapter": self.adapter, "weights": self.weights, "run": self.run}
        return {"name": self.name, **{key: None if path is None else str(path) for key, path in places.items()}}


# A contestant, and the base it was trained on where that is known.
Found = tuple[Contestant, Path | None]


@dataclass(frozen=True, slots=True)
class Field:
    """The contestants, the base first; the model config of the base, how all sample, and the first run's config.

    `trained` is None where no contestant is a run. plugins: the packages whose code the model config may name.
    """

    contestants: tuple[Contestant, ...]
    model: dict[str, Any]
    sampling: dict[str, Any]
    trained: dict[str, Any] | None
    plugins: tuple[str, ...] = ()

    @property
    def trained_file(self) -> Path:
        """The file that `trained` was read from, for messages."""
        run = next((one.run for one in self.contestants if one.run is not None), None)
        return Path("config.yaml") if run is None else run / "config.yaml"


def locate(config: DictConfig) -> Field:
    """The contestants a config of ``src.evaluate`` names, checked as far as possible without loading weights.

    Raises:
        UserError: for a missing run or adapter, two with the same name, or different bases.
    """
    from src.build import plain
    from src.config.allowed_targets import check_part

    found = [] if config.run is None else [_run(None, find_run(config.run), config.base)]
    given = [*_named(config.adapter), *_named(plain(config.adapters))]
    found += [_trained(name, find_run(text), config.base) for name, text in given]
    contestants = (Contestant(BASE), *(contestant for contestant, _ in found))
    _check_names(contestants)
    run = next((contestant.run for contestant, _ in found if contestant.run is not None), None)
    trained = None if run is None else run_config(run)
    model = dict(plain(config.model) if trained is None else trained["model"])
    # A run's config is a file, maybe from someone else.
    check_part(model, "model", config.plugins, "model")
    base = _common_base(config, model, trained is not None, found)
    model |= {"path": str(base)}
    if "lora" in model:
        # A new adapter changes nothing and avoids a copy of the weights; the others are loaded next to it.
        model |= {"lora": {}, "adapter": None}
    sampling = dict(plain(config.sampling))
    if run is not None and trained is not None:
        sampling |= sampling_of_run(trained, run / "config.yaml")
    sampling |= sampling_asked_for(config)
    check_sampling(sampling)
    return Field(contestants, model, sampling, trained, tuple(config.plugins))


def load(field: Field) -> Policy:
    """The base on this process's device, every contestant's adapter on it, switched off.

    Raises:
        UserError: for a base that cannot be loaded, or an adapter or weights that do not fit it.
    """
    from src import build
    from src.policies.switching import add_adapter, check_weights_fit
    from src.runs.config import literal

    _check_shapes(field)
    given = {"run": {"seed": 0}, "model": field.model, "plugins": list(field.plugins)}
    policy: Any = build.build_policy(literal(given))
    policy = policy.to(build.device()).eval()
    for number, contestant in enumerate(field.contestants):
        try:
            if contestant.adapter is not None:
                add_adapter(policy, contestant.adapter, _slot(number))
            if contestant.weights is not None:
                check_weights_fit(policy, contestant.weights)
        except ValueError as error:
            raise UserError(f"{contestant.name}: {error}") from error
    check_contestants(policy, field)
    return policy


def check_contestants(policy: Any, field: Field) -> None:
    """Check each contestant's decoder against the forward of its own modules; policies other than Janus are skipped.

    Raises:
        UserError: naming the contestant that would be evaluated wrongly.
    """
    from src.policies.agreement import Disagreement, check_decoder
    from src.policies.janus import JanusPolicy
    from src.policies.lora import adapters_off

    if not isinstance(policy, JanusPolicy) or policy.adapter is None:
        return
    for number, contestant in enumerate(field.contestants):
        off = nullcontext() if contestant.adapter is not None else adapters_off(policy.adapter)
        try:
            with decoder_of(policy, field, number) as decoder, off:
                check_decoder(decoder, policy.decoding_janus, contestant.name)
        except Disagreement as error:
            raise UserError(str(error)) from error


@contextmanager
def decoder_of(policy: Any, field: Field, number: int) -> Iterator[Decoder]:
    """The decoder of contestant `number` of the field, valid inside the ``with`` block."""
    from src.policies.switching import adapter_decoder, base_decoder, weights_decoder

    contestant = field.contestants[number]
    if contestant.adapter is not None:
        chosen = adapter_decoder(policy, _slot(number))
    elif contestant.weights is not None:
        chosen = weights_decoder(policy, contestant.weights)
    else:
        chosen = base_decoder(policy)
    with chosen as decoder:
        yield decoder


def _slot(number: int) -> str:
    """The adapter name of a contestant in PEFT, which allows no dots."""
    return f"contestant_{number}"


def _named(adapters: Any) -> list[tuple[str | None, str]]:
    """(name, path) pairs of ``adapters=``: a path, a list of them, or {name: path}."""
    if adapters is None:
        return []
    if isinstance(adapters, Mapping):
        return [(str(name), str(path)) for name, path in adapters.items()]
    return [(None, str(path)) for path in ([adapters] if isinstance(adapters, str) else list(adapters))]


def _run(name: str | None, path: Path, base: str | None) -> Found:
    """The contestant that a run folder holds, and its base."""
    source = source_of_run(path, base)
    return Contestant(name or path.resolve().name, source.adapter, source.weights, path), source.base


def _trained(name: str | None, path: Path, base: str | None) -> Found:
    """The contestant at the path of a run or of a PEFT adapter, and its base where that is known and there."""
    if holds_run(path):
        return _run(name, path, base)
    if not (path / "adapter_config.json").is_file():
        problem = "neither a run's folder nor a PEFT adapter" if path.is_dir() else "no such folder"
        raise UserError(
            f"adapters: {path}: {problem}; give the folder of a run made by src.train, or one written by PEFT."
            f"{nearest_run(path)}"
        )
    from src.policies.export import base_of_adapter

    try:
        trained_on = base_of_adapter(path)
    except ValueError as error:
        raise UserError(f"adapters: {error}") from error
    folder = path.resolve()
    known = Path(trained_on) if base is None and trained_on and Path(trained_on).is_dir() else None
    return Contestant(name or (folder.parent.name if folder.name == "adapter" else folder.name), path), known


def _check_names(contestants: tuple[Contestant, ...]) -> None:
    taken: set[str] = set()
    for contestant in contestants:
        if contestant.folder_name in taken:
            raise UserError(
                f"adapters: two models are called {contestant.name}; name them, as in"
                " adapters={first: runs/a, second: runs/b}"
            )
        taken.add(contestant.folder_name)


def _common_base(config: DictConfig, model: dict[str, Any], of_run: bool, found: list[Found]) -> Path:
    """The one base of all contestants.

    Raises:
        UserError: naming two that differ.
    """
    if config.base is not None:
        if not Path(config.base).expanduser().is_dir():
            raise UserError(f"base={config.base}: no such folder")
        return Path(config.base).expanduser()
    known = [(contestant.name, base) for contestant, base in found if base is not None]
    run_bases = [base for contestant, base in found if contestant.run is not None and base is not None]
    if of_run and run_bases:
        base, because = run_bases[0], "the run's base"
    else:
        base, because = Path(checkpoint_of_model(model)).expanduser(), "model.path"
    for name, other in known:
        if other.resolve() != base.resolve():
            raise UserError(
                f"adapters: {name} was trained on {other}, {because} is {base}: all must have one base; if these are"
                " copies of one, say which to use with base=PATH"
            )
    return base


def _check_shapes(field: Field) -> None:
    """Raise UserError, before weights are loaded, for adapters that are not made for the base's sizes."""
    adapters = [contestant for contestant in field.contestants if contestant.adapter is not None]
    if not adapters or current(field.model.get("_target_")) != JANUS:
        return
    from src.policies.adapter_files import check_adapter_directory, check_adapter_fits
    from src.policies.checkpoint import open_checkpoint
    from src.policies.load import find_checkpoint

    try:
        checkpoint = open_checkpoint(find_checkpoint(field.model["path"], None))
        shapes = {name: weight.shape for name, weight in checkpoint.weights.items()}
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    for contestant in adapters:
        assert contestant.adapter is not None
        try:
            check_adapter_directory(contestant.adapter)
            check_adapter_fits(contestant.adapter, shapes, checkpoint.folder)
        except ValueError as error:
            raise UserError(f"{contestant.name}: {error}") from error
