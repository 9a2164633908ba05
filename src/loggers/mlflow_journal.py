"""What the run folder keeps about its MLflow run: ``mlflow.json``, enough to upload the run later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from src.config.masking import masked_text
from src.runs.files import WrongForm, mapping, need, read_json
from src.runs.folder import RunFolder, write_json

UPLOAD = "python -m src.upload_metrics"


@dataclass(frozen=True, slots=True)
class Journal:
    """One run in one store.

    tracking_uri: its password masked, as those of `uploaded`. run_id: None while the store has no such run. name,
    tags, parameters, datasets: what it starts with. pending: whether something was not written; `src.upload_metrics`
    then uploads it. uploaded: run ids in other stores, by URI.
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
    """The journal of a run folder; None where there is none.

    Raises:
        UserError: for one that is damaged or of another form.
    """
    if not folder.mlflow.is_file():
        return None
    found = read_json(folder.mlflow, _check, "delete it, and the run gets a new MLflow run")
    journal = Journal(**found)
    # Also finds runs from before passwords were masked.
    where = None if journal.tracking_uri is None else masked_text(journal.tracking_uri)
    return replace(
        journal, tracking_uri=where, uploaded={masked_text(uri): run for uri, run in journal.uploaded.items()}
    )


def _check(value: Any) -> None:
    """Raise WrongForm unless `value` is what `write_journal` writes, or an earlier version wrote."""
    known = {field.name for field in fields(Journal)}
    for name, inner in mapping(value).items():
        if name not in known:
            raise WrongForm(f"{name} is not an entry of it")
        if name in ("tags", "parameters", "uploaded"):
            _texts(inner, name)
        elif name == "datasets":
            for facts in inner if isinstance(inner, list) else [None]:
                mapping(facts, "an entry of datasets")
        elif name == "pending":
            if not isinstance(inner, bool):
                raise WrongForm("pending is not true or false")
        elif not isinstance(inner, str) and not (inner is None and name in ("tracking_uri", "run_id")):
            raise WrongForm(f"{name} is not a text")
    for name in ("tracking_uri", "experiment", "name"):
        need(value, name)


def _texts(value: Any, name: str) -> None:
    if not all(isinstance(inner, str) for inner in mapping(value, name).values()):
        raise WrongForm(f"{name} contains something other than strings")


def write_journal(folder: RunFolder, journal: Journal) -> None:
    """Keep it, whole or not at all."""
    write_json(folder.mlflow, asdict(journal))
