"""Export: ``python -m src.export run=runs/NAME out=DIR [merge=true]``.

Writes what a run trained in the formats of plain transformers and peft: the PEFT adapter, or with
``merge=true`` a whole checkpoint. A run of full fine-tuning is always written as a whole checkpoint. A model card is
added; push_to_hub=true uploads everything, register=true makes it a version in MLflow's model registry.

    python -m src.export run=runs/bicot_lora out=adapter
    python -m src.export run=runs/bicot_lora out=checkpoint merge=true
    python -m src.export adapter=runs/bicot_lora/adapter out=checkpoint merge=true dtype=bfloat16
    python -m src.export run=runs/bicot_lora out=checkpoint merge=true layout=original
    python -m src.export run=bicot_lora out=checkpoint merge=true push_to_hub=true repo=me/bicot_lora register=true
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.cli import command as cli
from src.config.errors import UserError
from src.config.masking import masked_text
from src.export.model_card import CardFacts, complete_card, hub_name
from src.export.publish import check_push, check_register, push, register
from src.trained import Source, find_run, holds_run, locate_source, run_config

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Prefix of the transformers model's names in the policy.
NETWORK = "policy.network."
# Beside copies of the base's files.
WRITTEN = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md", "samples_*.png")


def export(config: DictConfig) -> int:
    """One export; returns the exit code."""
    if config.out is None:
        raise UserError("out: missing; give the output folder, as in out=exported/bicot_lora")
    from src.runs.output_folder import check_free, written_whole

    out = Path(config.out).expanduser()
    source = locate_source(config.run, config.adapter, config.base)
    check_free(out, config.overwrite, (*WRITTEN, *(one.name for one in source.base.iterdir())))
    if out.resolve() in (source.base.resolve(), source.adapter and source.adapter.resolve()):
        raise UserError(f"out={out}: is the folder being exported; choose another one")
    whole = config.merge or source.adapter is None
    if config.dtype != "auto" and not whole:
        raise UserError(f"dtype={config.dtype}: an adapter keeps its dtype; add merge=true or leave dtype out")
    if config.layout != "transformers" and not whole:
        raise UserError(f"layout={config.layout}: an adapter has no layout; add merge=true or leave layout out")
    facts = card_facts(config, source, whole)
    registered_name = config.registered_name or facts.name
    if config.push_to_hub:
        check_push(config.repo)
        if not whole and facts.base is None:
            raise UserError(
                f"push_to_hub=true: the adapter's base {source.base} is only on this machine; add merge=true, or"
                " base_repository=ORGANISATION/NAME if it is on the hub"
            )
    if config.register:
        check_register(registered_name, facts.run, config.tracking_uri)
    if config.push_to_hub or config.register:
        refuse_links(source, whole)
    from src.policies.load import quiet

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
    """Write the export into `folder`.

    Raises:
        UserError: for an adapter or weights that are damaged or do not fit the base.
    """
    from src.policies import export as policies

    # A pushed file must not contain local paths.
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
    """Check that all uploaded files are inside their folder: a run, or a base it names, may come from someone else.

    Links into a Hugging Face cache are allowed, since it stores files that way. So are a base's linked weights: they
    are read as weights, not copied.

    Raises:
        UserError: for a link to another file of this machine.
    """
    from src.policies.export import WEIGHTS
    from src.runs.folder import leads_out

    adapter = [] if source.adapter is None else [source.adapter]
    base = [path for path in source.base.iterdir() if not path.name.endswith(WEIGHTS)] if whole else []
    for home, path in [*((one, one) for one in adapter), *((source.base, one) for one in base)]:
        link = leads_out(home, path)
        if link is not None and not re.search(r"/models--[^/]+/blobs/[^/]+$", str(link.resolve())):
            raise UserError(f"{link}: is a link out of {home}; replace it with the file itself, or delete it")


def card_facts(config: DictConfig, source: Source, whole: bool) -> CardFacts:
    """The facts for the model card: of the run, or of the run whose folder contains the adapter."""
    from src.runs.folder import RunFolder

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


def _own_names(weights: Path) -> dict[str, Any]:
    """A run's trained weights by their names in the transformers model."""
    from src.policies.weight_files import check_finite
    from src.runs.files import read_weights

    loaded = read_weights(weights, "give another run")
    foreign = [name for name in loaded if not name.startswith(NETWORK)]
    if foreign:
        raise UserError(f"{weights}: {foreign[0]} is not a weight of a Janus policy; this run cannot be exported")
    check_finite(loaded, weights)
    return {name.removeprefix(NETWORK): value for name, value in loaded.items()}


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
