"""What a config may call: for each slot (a place where ``_target_`` may stand) an explicit list of factories.

The lists stand in the rooms' ``__init__.py``, beside the code; nothing else of this project can be called. A plugin
adds its own: a class of the slot's kind, or anything marked with `makes`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from src import data, loggers, policies, rewards

# Where a factory has moved: its path in the configs and run folders of before -> its path now.
MOVED: dict[str, str] = {
    **{
        f"src.rewards.{name}": f"src.rewards.experts.{name}"
        for name in (
            "aesthetic.Aesthetic",
            "clip_score.ClipScore",
            "detector.Detector",
            "git_vqa.GitVqa",
            "hps.HPS",
            "orm.ORM",
            "shapes_judge.ShapesJudge",
            "vlm_judge.VLMJudge",
        )
    },
    "src.rewards.clip_layout.ClipSizes": "src.rewards.vision.clip_layout.ClipSizes",
}

Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Slot:
    """A place of a config where ``_target_`` may stand.

    what: a noun for messages. factories: dotted paths of what may be called there. base: dotted path of the class that
    a plugin's must derive from; None: a plugin adds nothing by class. methods_of: dotted path of a protocol whose
    methods a plugin's class must have, too. nested: settings of a part that may have a ``_target_`` of their own, and
    the only one each may have.
    """

    what: str
    factories: tuple[str, ...] = ()
    base: str | None = None
    methods_of: str | None = None
    nested: Mapping[str, str] = field(default_factory=dict)


# Hydra's own launchers and sweepers: those it ships and those of the plugins in its repository.
_LAUNCHERS = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
)
_SWEEPERS = (
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_ax_sweeper.ax_sweeper.AxSweeper",
    "hydra_plugins.hydra_nevergrad_sweeper.nevergrad_sweeper.NevergradSweeper",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
)

SLOTS: dict[str, Slot] = {
    "model": Slot("policy", policies.FACTORIES, "torch.nn.Module", "src.policies.base.Policy"),
    "data": Slot("data module", data.FACTORIES, "lightning.pytorch.LightningDataModule"),
    "expert": Slot("reward expert", rewards.FACTORIES, "src.rewards.base.RewardExpert", nested=rewards.NESTED),
    "logger": Slot("logger", loggers.FACTORIES, "lightning.pytorch.loggers.Logger"),
    "launcher": Slot("launcher of Hydra", _LAUNCHERS, "hydra.plugins.launcher.Launcher"),
    "sweeper": Slot("sweeper of Hydra", _SWEEPERS, "hydra.plugins.sweeper.Sweeper"),
    "callback": Slot("callback of Hydra", (), "hydra.experimental.callback.Callback"),
}

# What `makes` was put on, by slot.
_MARKED: dict[str, list[object]] = {name: [] for name in SLOTS}


def makes(slot: str) -> Callable[[Factory], Factory]:
    """Mark a plugin's function or class as a factory of `slot`: model, data, expert, logger.

    Only needed for functions, and for classes that do not derive from the slot's own. The package must still be named
    in ``plugins=[...]``::

        @makes("model")
        def load(path: str) -> MyPolicy: ...

    Raises:
        ValueError: for a slot that does not exist.
    """
    if slot not in _MARKED:
        raise ValueError(f"makes({slot!r}): no such slot; there are {', '.join(_MARKED)}")

    def mark(factory: Factory) -> Factory:
        _MARKED[slot].append(factory)
        return factory

    return mark


def current(target: Any) -> Any:
    """The path at which a factory stands now, for one that has moved; everything else as it is."""
    return MOVED.get(target, target) if isinstance(target, str) else target


def fits(found: object, slot: str) -> bool:
    """Whether a plugin's object is a factory of `slot`: a class of its kind, or marked for it."""
    if any(found is marked for marked in _MARKED[slot]):
        return True
    rule = SLOTS[slot]
    if not inspect.isclass(found) or rule.base is None or not issubclass(found, _class(rule.base)):
        return False
    return rule.methods_of is None or all(hasattr(found, name) for name in _methods(_class(rule.methods_of)))


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _methods(protocol: type) -> list[str]:
    return [name for name, member in vars(protocol).items() if inspect.isfunction(member) and name[0] != "_"]
