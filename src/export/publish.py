"""Where an export goes besides its folder: a repository on the Hugging Face hub, MLflow's model registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src.config.errors import UserError

NO_TOKEN = "push_to_hub=true: no token of the hub; run `hf auth login`, or set HF_TOKEN in the environment"  # noqa: S105


def check_push(repo: str | None) -> None:
    """Raise UserError without a repository's name or a token; makes no request."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repo is None:
        raise UserError("repo: missing; push_to_hub=true needs a repository's name, as in repo=me/bicot_lora")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"repo={repo}: not a repository name; expected ORGANISATION/NAME") from error
    if get_token() is None:
        raise UserError(NO_TOKEN)


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload `folder` to the hub's model repository `repo`, created if needed; returns its address.

    The token is the environment's or the one of `hf auth login`; no message shows it.

    Raises:
        UserError: if the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise UserError(NO_TOKEN)
    api = HfApi(token=token)
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of a BiCoT-GRPO run")
    except Exception as error:
        # Whatever the client or its network stack raised, the export itself is complete.
        reason = next(iter(str(error).strip().splitlines()), "no reason given").replace(token, "(token)")
        raise UserError(
            f"repo={repo}: the hub refused it ({type(error).__name__}: {reason}); the export is in {folder}"
        ) from None
    return str(address)


def registry_of(run: Path | None, tracking_uri: str | None) -> tuple[str, str | None, Path | None]:
    """(tracking URI, MLflow id of the run there, folder for artifacts of a local store) to register in.

    A run that was logged to MLflow is registered where it was logged, unless `tracking_uri` says otherwise.

    Raises:
        UserError: for a store that MLflow cannot use, or a damaged mlflow.json.
    """
    from src.config.masking import masked_text
    from src.loggers.mlflow_journal import read_journal
    from src.loggers.store import locate_store, noted_uri
    from src.runs.folder import RunFolder

    known = None if run is None else read_journal(RunFolder(run))
    root = Path("runs") if run is None else run.absolute().parent
    store = locate_store(
        tracking_uri or noted_uri(None if known is None else known.tracking_uri, root), root, key="tracking_uri"
    )
    return (
        store.uri,
        None if known is None or masked_text(store.uri) != known.tracking_uri else known.run_id,
        store.artifacts,
    )


def register(folder: Path, name: str, run: Path | None, tracking_uri: str | None) -> tuple[str, int]:
    """Log `folder` as an artifact and make it the next version of the registered model `name`.

    Returns the tracking URI and the version. The artifact belongs to the run's own MLflow run if it has one,
    else under a new one in the experiment ``exports``.

    Raises:
        UserError: if the store refuses.
    """
    from src.loggers.store import check_artifacts, named

    uri, run_id, artifacts = registry_of(run, tracking_uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client: Any = MlflowClient(uri, registry_uri=uri)
        if run_id is None:
            experiment = client.get_experiment_by_name("exports")
            location = None if artifacts is None else artifacts.as_uri()
            where = client.create_experiment("exports", location) if experiment is None else experiment.experiment_id
            run_id = client.create_run(where, run_name=name).info.run_id
            client.set_terminated(run_id)
        check_artifacts(client.get_run(run_id).info.artifact_uri, uri, named(tracking_uri))
        place = f"exported/{folder.name}"
        client.log_artifacts(run_id, str(folder), place)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, tags={"trainer": "bicot-grpo"})
        source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
        version = client.create_model_version(name, source, run_id, description=f"exported as {folder.name}")
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"registered_name={name}: {uri} refused it ({reason}); the export is in {folder}") from error
    return uri, int(version.version)


def check_register(name: str, run: Path | None, tracking_uri: str | None) -> None:
    """Raise UserError for a name the registry does not allow, or a store that cannot be used."""
    if not name.strip() or set(name) & set("/:'\""):
        raise UserError(f"registered_name={name!r}: expected a name without slashes, colons and quotes")
    registry_of(run, tracking_uri)
