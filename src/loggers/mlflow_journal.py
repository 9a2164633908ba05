"""What the run folder keeps about its MLflow run: ``mlflow.json``, enough to write the run there later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from src.masking import masked_text
from src.training.run_folder import RunFolder, write_json

UPLOAD = "python -m src.upload_metrics"


@dataclass(frozen=True, slots=True)
class Journal:
    """One run in one store.

    tracking_uri: its password masked, as those of `uploaded`. run_id: None while the store has no such run. name,
    tags, parameters, datasets: what it begins with. pending: whether something did not get there; then
    `src.upload_metrics` has work to do. uploaded: run ids in other stores, by URI.
    """

    tracking_uri: str | None
    experiment: str
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[Mapping[str, Any]] = field(default_factory=list)
    run_id: str | None = None
    pending: bool = False
    uploaded: Mapping[str, str] = field(default_factory=dict)

    def run_in(self, uri: str) -> str | None:
        """The run's id in the store at `uri`, if it was written there."""
        uri = masked_text(uri)
        return self.run_id if uri == self.tracking_uri else self.uploaded.get(uri)

    def with_run(self, uri: str, run_id: str, pending: bool) -> Journal:
        """The same with the run's id in the store at `uri`."""
        uri = masked_text(uri)
        if uri == self.tracking_uri:
            return replace(self, run_id=run_id, pending=pending)
        return replace(self, uploaded={**self.uploaded, uri: run_id})


def read_journal(folder: RunFolder) -> Journal | None:
    """The journal of a run folder; None where there is none that can be read."""
    try:
        found: dict[str, Any] = json.loads(folder.mlflow.read_text(encoding="utf-8"))
        journal = Journal(**found)
        # A run from before passwords were masked is found again all the same.
        where = None if journal.tracking_uri is None else masked_text(journal.tracking_uri)
        return replace(
            journal, tracking_uri=where, uploaded={masked_text(uri): run for uri, run in journal.uploaded.items()}
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_journal(folder: RunFolder, journal: Journal) -> None:
    """Keep it, whole or not at all."""
    write_json(folder.mlflow, asdict(journal))
