"""Export: ``python -m src.export run=runs/NAME out=DIR [merge=true]``.

Writes what a run trained in the formats of plain transformers and peft: the PEFT adapter, or with
``merge=true`` a whole checkpoint. A run of full fine-tuning is always written as a whole checkpoint. Beside it stands a
model card; push_to_hub=true uploads all of it, register=true makes it a version in MLflow's model registry.

    python -m src.export run=runs/bicot_lora out=adapter
    python -m src.export run=runs/bicot_lora out=checkpoint merge=true
    python -m src.export adapter=runs/bicot_lora/adapter out=checkpoint merge=true dtype=bfloat16
    python -m src.export run=runs/bicot_lora out=checkpoint merge=true layout=original
    python -m src.export run=bicot_lora out=checkpoint merge=true push_to_hub=true repo=me/bicot_lora register=true
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import cli
from src.config import UserError
from src.masking import masked_text
from src.model_card import CardFacts, complete_card, hub_name
from src.publish import check_push, check_register, push, register

if TYPE_CHECKING:
    from omegaconf import DictConfig

# In front of the transformers model's own names, where the policy holds it.
NETWORK = "policy.network."
# Beside copies of the base's files.
WRITTEN = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md", "samples_*.png")


@dataclass(frozen=True, slots=True)
class Source:
    """What to export: a base and either an adapter on it or the weights that replace some of its own."""

    base: Path
    adapter: Path | None
    weights: Path | None = None


def export(config: DictConfig) -> int:
    """One export; returns the exit code."""
    if config.out is None:
        raise UserError("out: missing; give the folder to write, as in out=exported/bicot_lora")
    from src.output_folder import check_free, written_whole

    out = Path(config.out).expanduser()
    source = locate_source(config.run, config.adapter, config.base)
    check_free(out, config.overwrite, (*WRITTEN, *(one.name for one in source.base.iterdir())))
    if out.resolve() in (source.base.resolve(), source.adapter and source.adapter.resolve()):
        raise UserError(f"out={out}: is what is to be exported; choose another folder")
    whole = config.merge or source.adapter is None
    if config.dtype != "auto" and not whole:
        raise UserError(f"dtype={config.dtype}: an adapter keeps its dtype; add merge=true or leave dtype out")
    if config.layout != "transformers" and not whole:
        raise UserError(f"layout={config.layout}: an adapter has no layout of its own; add merge=true or leave it out")
    facts = card_facts(config, source, whole)
    registered_name = config.registered_name or facts.name
    if config.push_to_hub:
        check_push(config.repo)
        if not whole and facts.base is None:
            raise UserError(
                f"push_to_hub=true: nobody else has the adapter's base {source.base}; add merge=true, or"
                " base_repository=ORGANISATION/NAME if it is on the hub"
            )
    if config.register:
        check_register(registered_name, facts.run, config.tracking_uri)
    if config.push_to_hub or config.register:
        refuse_links(source, whole)
    quiet()
    with written_whole(out, config.overwrite) as folder:
        write(config, source, folder, whole, facts)
        complete_card(folder, facts)
    print(f"{'checkpoint' if whole else 'adapter'}: {out}")
    if config.register:
        uri, version = register(out, registered_name, facts.run, config.tracking_uri)
        print(masked_text(f"registered: {registered_name}, version {version}, in {uri}"))
    if config.push_to_hub:
        print(f"pushed: {push(out, config.repo, config.private)}")
    return 0


def write(config: DictConfig, source: Source, folder: Path, whole: bool, facts: CardFacts) -> None:
    """What is exported, into `folder`.

    Raises:
        UserError: for an adapter or weights that are damaged or do not fit the base.
    """
    from src.policies import export as policies

    # What is pushed names no place of this machine.
    base = facts.base or (source.base.name if config.push_to_hub else None)
    names = policies.PageNames(base, config.repo if config.push_to_hub else ".")
    try:
        if source.weights is not None:
            weights = _own_names(source.weights)
            policies.write_trained(weights, source.base, folder, config.dtype, config.layout, names)
        elif source.adapter is not None and whole:
            policies.write_merged(source.adapter, source.base, folder, config.dtype, config.layout, names)
        elif source.adapter is not None:
            policies.write_adapter(source.adapter, source.base, folder, names)
    except ValueError as error:
        raise UserError(str(error)) from error


def refuse_links(source: Source, whole: bool) -> None:
    """Check that what is sent away lies in its folder: a run, or a base it names, may be somebody else's.

    Links into a Hugging Face cache are fine, which keeps its files that way. So are a base's linked weights: they are
    read as weights, not copied.

    Raises:
        UserError: for a link to some other file of this machine.
    """
    from src.policies.export import WEIGHTS
    from src.training.run_folder import leads_out

    adapter = [] if source.adapter is None else [source.adapter]
    base = [path for path in source.base.iterdir() if not path.name.endswith(WEIGHTS)] if whole else []
    for home, path in [*((one, one) for one in adapter), *((source.base, one) for one in base)]:
        link = leads_out(home, path)
        if link is not None and not re.search(r"/models--[^/]+/blobs/[^/]+$", str(link.resolve())):
            raise UserError(f"{link}: is a link out of {home}; put the file itself in its place, or delete it")


def card_facts(config: DictConfig, source: Source, whole: bool) -> CardFacts:
    """What the model card tells: of the run, or of the run whose folder the adapter lies in."""
    from src.training.run_folder import RunFolder

    run = None if config.run is None else find_run(config.run)
    if run is None and source.adapter is not None and holds_run(source.adapter.parent):
        run = source.adapter.parent
    trained = None if run is None else run_config(run)
    repository = config.base_repository or (trained or {"model": {}})["model"].get("repository")
    library = None if config.layout == "original" else "transformers" if whole else "peft"
    return CardFacts(
        name=Path(config.out).expanduser().resolve().name if run is None else run.resolve().name,
        base=hub_name(source.base, repository),
        base_folder=source.base,
        library=library,
        license=config.license,
        run=run,
        config=trained,
        summary=None if run is None else RunFolder(run).read_summary(),
    )


def locate_source(run: str | None, adapter: str | None, base: str | None) -> Source:
    """Base, adapter or weights, checked to be there.

    Raises:
        UserError: naming what is missing and what to give instead.
    """
    if (run is None) == (adapter is None):
        raise UserError("run, adapter: give one of the two, as in run=runs/bicot_lora or adapter=runs/x/adapter")
    if run is not None:
        return source_of_run(find_run(run), base)
    from src.policies.export import base_of_adapter

    folder = Path(str(adapter)).expanduser()
    if not folder.is_dir():
        raise UserError(f"adapter={adapter}: no such folder")
    try:
        named = base or base_of_adapter(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    if named is None:
        raise UserError(f"adapter={adapter}: names no base checkpoint; give base=PATH")
    return Source(_base(named, f"adapter={adapter}"), folder)


def source_of_run(run: Path, base: str | None = None) -> Source:
    """What a run trained: its adapter (the best by validation), or its best weights.

    Raises:
        UserError: if `run` is no run folder, or trained nothing yet.
    """
    from src.training.run_folder import RunFolder
    from src.training.sound_files import damage

    folder = RunFolder(run)
    model = run_config(run)["model"]
    checkpoint = _base(base or checkpoint_of_model(model), f"run={run}")
    if (folder.adapter / "adapter_config.json").is_file():
        return Source(checkpoint, folder.adapter)
    if model.get("lora") is not None or model.get("adapter") is not None:
        raise UserError(
            f"run={run}: no adapter yet, it is written when training ends; finish the run with"
            f" `python -m src.train resume={run}` and its own settings, as in {folder.config}"
        )
    if not folder.best_weights.is_file():
        raise UserError(f"run={run}: no trained weights there ({folder.best_weights})")
    problem = damage(folder.best_weights)
    if problem is not None:
        raise UserError(f"run={run}: {folder.best_weights} is damaged: {problem}; give another run or adapter")
    return Source(checkpoint, None, folder.best_weights)


def run_config(run: Path) -> dict[str, Any]:
    """The config of a run folder, as plain Python; it names a model.

    Raises:
        UserError: if there is none, or it is none of ours (`src.run_config`).
    """
    from src.run_config import read_run_config

    path = run / "config.yaml"
    if not holds_run(run):
        raise UserError(
            f"run={run}: no config.yaml there; give the folder of a run made by src.train.{nearest_run(run)}"
        )
    config = read_run_config(path)
    if "path" not in config.get("model", {}):
        raise UserError(f"{path}: has no model.path; give the folder of a run made by src.train")
    return config


def find_run(run: str) -> Path:
    """The folder of a run that is given by its path, or by its name below runs/."""
    path, named = Path(run).expanduser(), Path("runs") / run
    return named if not holds_run(path) and holds_run(named) else path


def nearest_run(run: Path) -> str:
    """`` Did you mean x?``: run folders beside `run`, or below runs/, of nearly its name; nothing where none is."""
    from difflib import get_close_matches

    roots = dict.fromkeys((run.parent, Path("runs")))
    found = {path.name: path for root in roots if root.is_dir() for path in root.iterdir() if holds_run(path)}
    close = get_close_matches(run.name, found, n=3)
    return f" Did you mean {' or '.join(str(found[name]) for name in close)}?" if close else ""


def holds_run(path: Path) -> bool:
    """Whether `path` is a folder that src.train wrote a config into."""
    return (path / "config.yaml").is_file()


def checkpoint_of_model(model: dict[str, Any]) -> str:
    """Where a model config's checkpoint lies: its path, or its repository's local copy, downloaded if need be.

    Raises:
        UserError: if the repository cannot be had.
    """
    if model.get("path") is not None:
        return str(model["path"])
    from src.policies.load import find_checkpoint
    from src.policies.weight_files import CheckpointError

    try:
        return str(find_checkpoint(None, model.get("repository")))
    except CheckpointError as error:
        raise UserError(f"model: {error}") from error


def _base(path: str, named_by: str) -> Path:
    from src.policies.weight_files import could_be_path

    folder = Path(path).expanduser() if could_be_path(path) else None
    if folder is None or not folder.is_dir():
        raise UserError(f"{named_by}: its base checkpoint {path} is not there (any more); give base=PATH")
    return folder


def _own_names(weights: Path) -> dict[str, Any]:
    """A run's trained weights by their names in the transformers model."""
    from src.policies.weight_files import check_finite
    from src.training.run_files import read_weights

    loaded = read_weights(weights, "give another run")
    foreign = [name for name in loaded if not name.startswith(NETWORK)]
    if foreign:
        raise UserError(f"{weights}: {foreign[0]} is no weight of a Janus policy; this run cannot be exported")
    check_finite(loaded, weights)
    return {name.removeprefix(NETWORK): value for name, value in loaded.items()}


def quiet() -> None:
    """Silence what third parties print while a checkpoint loads and a user can do nothing about."""
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


COMMAND = cli.Command(
    name="export",
    about="Export what a run trained: its PEFT adapter, or with merge=true a whole checkpoint for transformers.",
    examples=(
        "run=runs/bicot_lora out=exported/adapter",
        "run=runs/bicot_lora out=exported/checkpoint merge=true",
        "adapter=runs/bicot_lora/adapter out=exported/checkpoint merge=true dtype=bfloat16",
        "run=bicot_lora out=exported/checkpoint merge=true push_to_hub=true repo=me/bicot_lora register=true",
    ),
    task=export,
    config="export",
    groups=(),
    keys=(
        "run=NAME|DIR | adapter=DIR what to export: a run folder, or a PEFT folder",
        "out=DIR                    where to; overwrite=true replaces what is there",
        "merge=true                 the base with the adapter merged in, dtype=auto|float32|bfloat16",
        "layout=original            a whole checkpoint in the layout Janus was released in, not transformers'",
        "base=DIR                   where the base checkpoint is now, if it moved",
        "push_to_hub=true repo=ORG/NAME private=true    upload; the token is HF_TOKEN or `hf auth login`'s",
        "register=true registered_name tracking_uri     a version in MLflow's model registry",
        "license base_repository    of the model card, where the run does not say",
    ),
)


def main() -> int:
    """Entry point."""
    return cli.run(COMMAND)


if __name__ == "__main__":
    sys.exit(main())
