"""Run folders and configs that somebody made to have code called: nothing of it is, whichever command reads them."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from src import train
from src.benchmark_images import command as benchmark_images
from src.cli import command as cli
from src.cli.compose import MLFLOW_EXPERIMENT
from src.cli.prompt_source import PromptSource
from src.compare import command as compare
from src.evaluate import command as evaluate
from src.export import command as export
from src.generate import command as generate
from src.serve_rewards import command as serve_rewards
from src.upload_metrics import command as upload_metrics
from tests.conftest import ROOT
from tests.tiny_run import SHORT, lora_run

CHECKPOINT = str(ROOT / "src" / "shapes" / "checkpoint")
PATH = "src.loggers.store._file_of"  # makes a path of a text


@dataclass
class Victim:
    """What an attack is after: a folder that Python reads at its start, another run, a checkpoint, a server to call."""

    folder: Path
    calls: list[str] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        for name in ("site", "run", "checkpoint"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "run" / "metrics.csv").write_text("step,reward\n0,1\n")
        shutil.copytree(CHECKPOINT, self.folder / "checkpoint", dirs_exist_ok=True)
        self.before = self.state()

    def state(self) -> dict[str, tuple[int, int]]:
        return {
            str(path.relative_to(self.folder)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(self.folder.rglob("*"))
        }

    def at(self, name: str) -> str:
        return str(self.folder / name)

    def unharmed(self) -> bool:
        return self.state() == self.before and self.calls == []


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Victim]:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token-of-the-environment")
    victim = Victim(tmp_path / "victim")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                victim.calls.append("called")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        victim.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield victim
        server.shutdown(socket.SHUT_RDWR)


def path_of(text: str) -> dict[str, Any]:
    return {"_target_": PATH, "uri": text}


# What was possible while every function and class of a room could be called.
ATTACKS: dict[str, Callable[[Victim], dict[str, Any]]] = {
    "writes into site-packages": lambda victim: {
        "_target_": "src.policies.export._copy_rest",
        "base": {"_target_": "src.policies.checkpoint.open_checkpoint", "path": CHECKPOINT},
        "out": path_of(victim.at("site")),
        "layout": "transformers",
    },
    "overwrites a checkpoint": lambda victim: {
        "_target_": "src.policies.export.write_merged",
        "adapter": path_of(str(lora_run().adapter)),
        "base": path_of(CHECKPOINT),
        "out": path_of(victim.at("checkpoint")),
    },
    "deletes metrics": lambda victim: {
        "_target_": "lightning.pytorch.loggers.csv_logs.ExperimentWriter",
        "log_dir": victim.at("run"),
    },
    "makes folders": lambda victim: {
        "_target_": "src.loggers.store.locate_store",
        "tracking_uri": f"sqlite:///{victim.at('made/x.db')}",
        "root": None,
    },
    "sends a token": lambda victim: {
        "_target_": "src.loggers.mlflow_logger.start_parent",
        "tracking_uri": victim.url,
        "root": None,
        "experiment": "x",
        "name": "x",
        "tags": {},
    },
    "reads a file through a class": lambda victim: {
        "_target_": "src.policies.janus.JanusPolicy.register_forward_hook",
    },
    "runs a program": lambda victim: {
        "_target_": "subprocess.check_call",
        "args": ["touch", victim.at("site/run")],
    },
    "keeps a function": lambda victim: {
        "_target_": "src.policies.load.load_janus",
        "_partial_": True,
        "path": CHECKPOINT,
    },
}
# Where the attack stands in a part of a config.
PLACES: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "instead": lambda part, attack: {**part, **attack},
    "setting": lambda part, attack: {**part, "dtype": attack},
    "list": lambda part, attack: {**part, "lora": {"targets": [[attack]]}},
    "arguments": lambda part, attack: {**part, "_args_": [attack]},
}


def evil_run(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A finished run's folder whose config somebody changed."""
    shutil.copytree(lora_run().path, folder)
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    change(config)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return folder


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_generate_calls_nothing_of_a_runs_config(
    victim: Victim, tmp_path: Path, attack: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["model"] = PLACES[place](config["model"], ATTACKS[attack](victim))

    run, source = evil_run(tmp_path / "evil", change), PromptSource(("a red circle",), ())
    code = cli.run(
        cli.Command("generate", "", (), lambda config: generate.generate(config, source), "generate"),
        [f"run={run}", "n=1", f"out={tmp_path / 'out'}"],
    )
    error = capsys.readouterr().err
    assert victim.unharmed(), error
    assert code == 2
    assert error.startswith("error: model"), error
    assert "plugins=[subprocess]" not in error
    assert not (tmp_path / "out").exists()


def changed_at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a config that puts `value` at a dotted path."""

    def change(config: dict[str, Any]) -> None:
        *nodes, last = path.split(".")
        for name in nodes:
            config = config.setdefault(name, {})
        config[last] = value

    return change


PARTS = {
    "model": "model",
    "inside the model": "model.lora.targets",
    "reward": "rewards.experts.mine",
    "inside a reward": "rewards.experts.shapes.bonus",
    "data": "data",
    "inside the data": "data.columns",
    "logger": "logger",
    "elsewhere": "evaluation.seed",
}


def demo(config: Any) -> int:
    from src.demo.__main__ import prepared

    return int(bool(prepared(config)))


def prompted(task: Callable[..., int]) -> Callable[[Any], int]:
    return lambda config: task(config, PromptSource(("a red circle",), ()))


# Every command that reads a run folder: its task, its config, its arguments; which parts it builds something of.
COMMANDS: dict[str, tuple[Callable[[Any], int], str, Callable[[Path, Path], list[str]], set[str]]] = {
    "generate": (
        prompted(generate.generate),
        "generate",
        lambda run, out: [f"run={run}", "n=1", f"out={out}"],
        {"model", "inside the model"},
    ),
    "evaluate": (
        lambda config: evaluate.evaluate(config, PromptSource((), ())),
        "evaluate",
        lambda run, out: [f"run={run}", "n=1", "max_prompts=1", f"out={out}"],
        {"model", "inside the model", "reward", "inside a reward", "data", "inside the data"},
    ),
    "evaluate adapters": (
        prompted(evaluate.evaluate),
        "evaluate",
        lambda run, out: [f"adapters=[{run}]", "rewards=shapes", "n=1", f"out={out}"],
        {"model", "inside the model"},
    ),
    "benchmark_images": (
        benchmark_images.COMMAND.task,
        "benchmark_images",
        lambda run, out: [
            *(f"run={run}", f"out={out}", "name=dpg", f"prompts={ROOT / 'tests' / 'benchmarks'}"),
            *("n=1", "seed=0"),
        ],
        {"model", "inside the model"},
    ),
    "demo": (demo, "demo", lambda run, out: [f"run={run}"], {"model", "inside the model"}),
    "export": (export.export, "export", lambda run, out: [f"run={run}", f"out={out}"], set()),
    "compare": (
        compare.COMMAND.task,
        "compare",
        lambda run, out: [f"runs=[{run},{lora_run().path}]", f"out={out}"],
        set(),
    ),
    "upload_metrics": (
        upload_metrics.upload,
        "upload_metrics",
        lambda run, out: [f"run={run}", f"tracking_uri=sqlite:///{out}/mlflow.db"],
        set(),
    ),
    "resume": (
        train.train,
        "config",
        lambda run, out: [*SHORT, f"resume.path={run}", "trainer.max_steps=1", "logger=csv"],
        set(),
    ),
}


def run_command(command: str, run: Path, out: Path) -> int:
    if command == "demo":
        pytest.importorskip("gradio")
    task, config, arguments, _ = COMMANDS[command]
    spoken = cli.Command(command, "", (), task, config, own_words=MLFLOW_EXPERIMENT)
    return cli.run(spoken, arguments(run, out))


@pytest.mark.parametrize(
    ("command", "part"), [(name, part) for name, row in COMMANDS.items() for part in sorted(row[3])]
)
def test_a_part_that_a_command_builds_is_refused(
    victim: Victim, tmp_path: Path, command: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = ATTACKS["deletes metrics"](victim)
    if part == "model":  # which must still say where its base lies
        attack["path"] = CHECKPOINT
    run = evil_run(tmp_path / "evil", changed_at(PARTS[part], attack))
    code = run_command(command, run, tmp_path / "out")
    error = capsys.readouterr().err
    assert victim.unharmed(), error
    assert code == 2, error
    assert error.startswith(f"error: {PARTS[part]}"), error
    assert "csv_logs.ExperimentWriter" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_part_that_a_command_does_not_build_is_data(victim: Victim, tmp_path: Path, command: str) -> None:
    """Whether the command succeeds or not: all these parts at once, and nothing of them is called."""

    def change(config: dict[str, Any]) -> None:
        for part, path in PARTS.items():
            if part not in COMMANDS[command][3] and part != "elsewhere":
                attack = ATTACKS["deletes metrics"](victim)
                changed_at(path, {**attack, "path": CHECKPOINT} if part == "model" else attack)(config)

    run_command(command, evil_run(tmp_path / "evil", change), tmp_path / "out")
    assert victim.unharmed()


OWN_CONFIGS = {
    "train": (train.COMMAND, ["logger=csv"], ("model", "data", "rewards.experts.x", "logger")),
    "generate": (generate.COMMAND, [], ("model", "rewards.experts.x")),
    "evaluate": (evaluate.COMMAND, ["rewards=shapes", "data=shapes"], ("model", "data", "rewards.experts.x")),
    "serve_rewards": (serve_rewards.COMMAND, ["rewards=shapes"], ("rewards.experts.x",)),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("command", "part"), [(command, part) for command, row in OWN_CONFIGS.items() for part in row[2]]
)
def test_a_config_of_ones_own_is_checked_as_well(
    victim: Victim, command: str, part: str, attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An `experiment` from somebody else; the attack stands in the part itself, and inside of it."""
    spoken, arguments, _ = OWN_CONFIGS[command]
    for place in (part, f"{part}.inner"):
        words = [f"++{place}.{key}={value}" for key, value in _words(ATTACKS[attack](victim))]
        assert cli.run(spoken, [*arguments, *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {part}"), error
        assert victim.unharmed()


def _words(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of a node's leaves as Hydra's command line takes them."""
    for name, value in node.items():
        place = f"{key}.{name}" if key else name
        if isinstance(value, dict) and value:
            yield from _words(value, place)
        else:
            yield place, "null" if value is None else f"'{value}'" if isinstance(value, str) else str(value)
