"""Files of a run that are damaged, of another version or something else: one message with the file and what to do."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from src.cli import command as cli
from src.config.errors import UserError
from src.loggers.mlflow_journal import read_journal
from src.runs.files import read_before, read_metrics, read_rollouts, read_summary, read_weights
from src.runs.folder import RunFolder
from src.runs.resume import checkpoint_state
from tests.training.runs import metrics_rows, train, write_world

GARBAGE = {
    "empty": b"",
    "binary": b"\x80\x02}q\x00\xff\xfe\x00",
    "cut": b'{"means": {"reward": 0.',
    "a list": b"[1, 2]",
    "a text": b'"x"',
    "deep": b"[" * 100_000,
    "zeros": b"\x00" * 512,
}
SETTINGS: dict[str, Any] = {
    "trainer__max_steps": 2,
    "rollout__group_size": 2,
    "evaluation__every": 9,
    "evaluation__validation_prompts": 1,
    "evaluation__test_prompts": 1,
    "evaluation__picture_prompts": 1,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def made(world: Path) -> Path:
    """A finished run of two steps."""
    assert train(world, world / "made", **SETTINGS) == 0
    return world / "made"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(made, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def resumed(world: Path, run: RunFolder) -> int:
    """Go on with it for one more step."""
    return train(world, run.path, **SETTINGS | {"trainer__max_steps": 3, "resume": "auto"})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


@pytest.mark.parametrize("damage", GARBAGE)
@pytest.mark.parametrize("name", ["before.json", "rollouts.jsonl", "summary.json", "metrics.csv"])
def test_resume_says_which_file_and_what_to_do(
    name: str, damage: str, world: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any weight is loaded, and nothing is changed; done as it says, the run goes on."""
    path = run.path / name
    path.write_bytes(GARBAGE[damage])
    before = content(run.path)
    code = resumed(world, run)
    if damage == "empty" and name in ("rollouts.jsonl", "metrics.csv"):
        assert code == 0, "nothing was logged yet: that is their form"
        return
    if name == "rollouts.jsonl" and damage != "binary":
        assert code == 0, "one line that a kill cut short"
        return
    assert code == 2
    told = capsys.readouterr().err
    assert re.search(rf"error: {re.escape(str(path))}: cannot be read as a run's {name} \(.+\); (delete|move) it", told)
    assert "Traceback" not in told
    assert content(run.path) == before


@pytest.mark.parametrize("name", ["before.json", "metrics.csv", "rollouts.jsonl", "summary.json"])
def test_what_it_says_helps(name: str, world: Path, run: RunFolder) -> None:
    before = run.before.read_bytes()
    (run.path / name).unlink()
    assert resumed(world, run) == 0
    assert run.before.read_bytes() == before
    assert metrics_rows(run.path)[-1]["step"] == "3"


FORMS: dict[str, list[tuple[Any, str]]] = {
    "before.json": [
        ({}, "means is missing"),
        ({"means": {}}, "by_kind is missing"),
        ({"means": {"reward": "high"}, "by_kind": {}}, "means.reward is not a number"),
        ({"means": {"reward": True}, "by_kind": {}}, "means.reward is not a number"),
        ({"means": {}, "by_kind": {"count": 3}}, "by_kind.count is not a JSON object"),
    ],
    "summary.json": [
        ({"finished": "yes"}, "finished is not true or false"),
        ({"finished": True, "steps": "all"}, "steps is not a number"),
        ({"finished": True, "steps": 1.5}, "steps is not a whole number"),
        ({"by_kind": []}, "by_kind is not a JSON object"),
        ({"by_kind": {"count": {"after": None}}}, "by_kind.count.before is missing"),
        ({"seconds_per_step": [1]}, "seconds_per_step is not a number"),
        ({"reward_after": {}}, "reward_after is not a number"),
    ],
    "mlflow.json": [
        ({}, "tracking_uri is missing"),
        ({"tracking_uri": None, "experiment": "e", "name": "n", "tags": []}, "tags is not a JSON object"),
        ({"tracking_uri": None, "experiment": "e", "name": "n", "tags": {"a": 1}}, "tags contains something other"),
        ({"tracking_uri": None, "experiment": "e", "name": "n", "datasets": 3}, "an entry of datasets"),
        ({"tracking_uri": None, "experiment": "e", "name": "n", "pending": 3}, "pending is not true or false"),
        ({"tracking_uri": None, "experiment": None, "name": "n"}, "experiment is not a text"),
        ({"tracking_uri": None, "experiment": "e", "name": "n", "more": 1}, "more is not an entry"),
    ],
}
READERS = {"before.json": read_before, "summary.json": read_summary, "mlflow.json": read_journal}


@pytest.mark.parametrize(("name", "value", "words"), [(n, v, w) for n, forms in FORMS.items() for v, w in forms])
def test_another_form_is_named(name: str, value: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(UserError, match=rf"{name}: .*{re.escape(words)}.*; delete it"):
        READERS[name](RunFolder(tmp_path))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", GARBAGE)
def test_no_reader_ends_in_a_traceback(name: str, damage: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(GARBAGE[damage])
    with pytest.raises(UserError, match=name):
        READERS[name](RunFolder(tmp_path))


@pytest.mark.parametrize("name", [*READERS, "metrics.csv", "rollouts.jsonl"])
def test_a_link_out_of_the_folder_is_not_followed(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "secret").write_text("{}")
    (run / name).symlink_to(tmp_path / "secret")
    by_path: Any = {"metrics.csv": read_metrics, "rollouts.jsonl": read_rollouts}
    read, given = (READERS[name], RunFolder(run)) if name in READERS else (by_path[name], run / name)
    with pytest.raises(UserError, match=r"is a link out of the run's folder"):
        read(given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch,loss\n1,2\n", "has no column step"),
        ("step,loss\none,2\n", "line 2, step is not a whole number: 'one'"),
        ("step,loss\n1,2\n2,high\n", "line 3, loss is not a number: 'high'"),
        ("step,loss\n1,2,3\n", "line 2 has a different number of fields"),
        ("step,loss\n1\n", "line 2 has a different number of fields"),
        ("step,loss\n1,\x002\n", "line"),
    ],
)
def test_metrics_of_something_else(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=rf"metrics\.csv: .*{re.escape(words)}.*move it away"):
        read_metrics(tmp_path / "metrics.csv")


def test_rollouts_keep_their_lines_and_lose_only_a_last_one_that_was_cut(tmp_path: Path) -> None:
    """A plan may hold what Python, but not JSON, takes for the end of a line."""
    path, lines = tmp_path / "rollouts.jsonl", ['{"step": 1, "plan": "a\u2028b\x85c"}', '{"step": 2}']
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_rollouts(path) == [(1, lines[0]), (2, lines[1])]
    path.write_text("\n".join(lines)[:-3], encoding="utf-8")
    assert read_rollouts(path) == [(1, lines[0])]
    path.write_text("\n".join(["{", *lines]), encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1 is not a rollout: '\{'"):
        read_rollouts(path)


class Thing:
    """What a pickle of something else holds."""


def other_checkpoints() -> dict[str, Any]:
    good = {"global_step": 1, "epoch": 0, "pytorch-lightning_version": "2.6", "state_dict": {}, "callbacks": {}}
    loops = {
        "epoch_loop.state_dict": {},
        "epoch_loop.batch_progress": {},
        "epoch_progress": {},
        "epoch_loop.manual_optimization.state_dict": {"finished_batches": 1},
    }
    good |= {"loops": {"fit_loop": loops}, "optimizer_states": [], "lr_schedulers": []}
    return {
        "a tensor": torch.zeros(3),
        "weights alone": {"w": torch.zeros(3)},
        "a list": [1, 2],
        "loops": good | {"loops": []},
        "a loop": good | {"loops": {"fit_loop": {}}},
        "batches": good | {"loops": {"fit_loop": loops | {"epoch_loop.manual_optimization.state_dict": {}}}},
        "step": good | {"global_step": "one"},
        "weights": good | {"state_dict": {"w": 3}},
        "weights' names": good | {"state_dict": [torch.zeros(1)]},
        "optimiser": good | {"optimizer_states": [3]},
        "groups": good | {"optimizer_states": [{"state": {}, "param_groups": [[]]}]},
        "schedule": good | {"lr_schedulers": {}},
        "callback": good | {"callbacks": {"RunReport": {"seconds_total": 1}}},
        "callbacks": good | {"callbacks": {"BestByValidation": 3}},
        "without version": {name: value for name, value in good.items() if name != "pytorch-lightning_version"},
    }


@pytest.mark.parametrize("form", [*other_checkpoints(), "a pickle", "a pickled class", "a zip", *GARBAGE])
def test_a_checkpoint_of_another_form(
    form: str, world: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """One without a checksum beside it, say from somebody else."""
    path = run.last_checkpoint
    path.with_name("last.ckpt.sha256").unlink()
    if form in GARBAGE:
        path.write_bytes(GARBAGE[form])
    elif form == "a pickle":
        path.write_bytes(pickle.dumps({"loops": 1, "global_step": 2, "state_dict": 3}))
    elif form == "a pickled class":
        torch.save(Thing(), path)
    elif form == "a zip":
        shutil.make_archive(str(path.with_suffix("")), "zip", run.path, "samples_before.png")
        path.with_suffix(".zip").replace(path)
    else:
        torch.save(other_checkpoints()[form], path)
    with pytest.raises(UserError, match=r"last\.ckpt: not a checkpoint of a training run \(.*resume=PATH"):
        checkpoint_state(path)
    if form in ("a pickle", "callback", "binary"):
        assert resumed(world, run) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["binary", "empty", "other weights", "other shapes"])
def test_best_weights_of_another_form(
    form: str, world: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.best_weights
    weights = {name: value.clone() for name, value in read_weights(path, "").items()}
    path.with_name("best.safetensors.sha256").unlink()
    if form in GARBAGE:
        path.write_bytes(GARBAGE[form])
    elif form == "other weights":
        save_file({"x": torch.zeros(1)}, path)
    else:
        save_file({name: torch.zeros(1) for name in weights}, path)
    assert resumed(world, run) == 2
    told = capsys.readouterr().err
    assert re.search(r"best\.safetensors: cannot be read as a run's best\.safetensors \(.+\); delete it to go on", told)
    path.unlink()
    assert resumed(world, run) == 0


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json", "test_after.jsonl", "mlflow.json"])
@pytest.mark.parametrize("damage", ["binary", "cut", "a list"])
def test_compare_says_it_too(
    name: str, damage: str, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from src.compare.command import COMMAND

    (run.path / name).write_bytes(GARBAGE[damage])
    assert cli.run(COMMAND, [f"runs={run.path}", f"out={tmp_path / 'out'}"]) == 2
    told = capsys.readouterr().err
    assert f"{run.path / name}: cannot be read as a run's {name} (" in told
    assert not (tmp_path / "out").exists()


def test_a_score_that_is_no_number(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from src.compare.command import COMMAND

    path = run.test_samples("after")
    line = json.loads(path.read_text().splitlines()[0]) | {"reward": "high"}
    path.write_text(json.dumps(line) + "\n")
    assert cli.run(COMMAND, [f"runs={run.path}", f"out={tmp_path / 'out'}"]) == 2
    assert "reward is not a number: 'high'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metrics.csv", "mlflow.json", "summary.json"])
def test_upload_says_it_too(name: str, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from src.upload_metrics.command import COMMAND

    (run.path / name).write_bytes(GARBAGE["binary"])
    arguments = [f"run={run.path}", f"tracking_uri=sqlite:///{tmp_path / 'm.db'}"]
    assert cli.run(COMMAND, arguments) == 2
    assert f"{run.path / name}: cannot be read as a run's {name} (" in capsys.readouterr().err


def test_export_says_it_too(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from src.export.command import COMMAND

    run.summary.write_bytes(GARBAGE["binary"])
    assert cli.run(COMMAND, [f"run={run.path}", f"out={tmp_path / 'out'}"]) == 2
    assert f"{run.summary}: cannot be read as a run's summary.json (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_going_on_is_not_uploaded(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    from src.runs.folder_lock import owned
    from src.upload_metrics.command import COMMAND

    with owned(run.path, "the run"):
        assert cli.run(COMMAND, [f"run={run.path}"]) == 2
    assert "the run is still active (pid " in capsys.readouterr().err
