"""What loggers get about the run: its folder, its settings as short flat parameters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from src.config.masking import masked
from src.config.schema import GROUP_SCHEMAS, Config
from src.runs.folder import RunFolder

# Sections that say how a run is kept, not what it computes.
NO_PARAMETERS = ("logger", "resume", "watchdog")
LONGEST_VALUE = 500


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """The prompts of one split.

    name: the file's or data set's name. digest: 12 hexadecimal digits of the records as they were read, so that
    equal digests mean equal prompts in equal order. context: training, validation or test.
    """

    name: str
    source: str
    digest: str
    prompts: int
    context: str


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run as its loggers see it.

    config: the resolved config as plain Python. interrupted: whether a signal asked the run to stop. datasets: the
    prompts it trains on and is judged by.
    """

    folder: RunFolder
    config: Mapping[str, Any]
    interrupted: Callable[[], bool] = lambda: False
    datasets: tuple[DatasetFacts, ...] = ()


def dataset_facts(node: Mapping[str, Any], data: Any) -> tuple[DatasetFacts, ...]:
    """The splits of a data module (``train_records`` and so on), named after the `data` section's path or dataset."""
    source = str(node.get("path") or node.get("dataset") or node.get("_target_", "data"))
    splits = (("training", "train_records"), ("validation", "validation_records"), ("test", "test_records"))
    return tuple(
        DatasetFacts(Path(source).name, source, _digest(records), len(records), context)
        for context, attribute in splits
        if (records := getattr(data, attribute, ()))
    )


def _digest(records: Iterable[object]) -> str:
    summed = sha256()
    for record in records:
        summed.update(repr(record).encode())
    return summed.hexdigest()[:12]


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping; lists count as values."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat_parameters(config: Mapping[str, Any], known: Mapping[str, type]) -> dict[str, str]:
    """The settings by name, as text of at most 500 characters, secrets masked.

    A key loses its section where no other section of the schema has the same rest (``algorithm.beta`` is
    ``beta``; ``evaluation.every`` and ``checkpoint.every`` stay whole). known: the schema's dotted keys (as
    `schema_keys` gives them). It, not the config at hand, decides what is ambiguous, so that a setting has the
    same name in every run; keys outside of it stay whole.
    """
    rest = Counter(key.partition(".")[2] for key in known)
    named = {}
    kept = {section: node for section, node in config.items() if section not in NO_PARAMETERS}
    for key, value in leaves(masked(kept)):
        short = key.partition(".")[2]
        unambiguous = key in known and short and rest[short] == 1 and not short.startswith("_")
        named[short if unambiguous else key] = shown(value)
    return named


def run_parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """`flat_parameters` of a training run's config."""
    return flat_parameters(config, schema_keys(Config, GROUP_SCHEMAS))


def schema_keys(schema: type, groups: Mapping[str, type]) -> dict[str, type]:
    """Every dotted key of a schema and of its groups' schemas, with the dataclass that declares it."""
    from dataclasses import fields, is_dataclass

    def walk(part: type, prefix: str) -> Iterator[tuple[str, type]]:
        for item in fields(part):
            inner: Any = groups.get(item.name) if not prefix else None
            if inner is None and callable(item.default_factory):
                default = item.default_factory()
                inner = type(default) if is_dataclass(default) else None
            if inner is None:
                yield f"{prefix}{item.name}", part
            else:
                yield from walk(inner, f"{prefix}{item.name}.")

    return dict(walk(schema, ""))


def shown(value: Any) -> str:
    """A setting as one would write it in YAML, cut to 500 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def is_rank_zero() -> bool:
    """Whether this process is the one that writes; known before Lightning's strategy is."""
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0
