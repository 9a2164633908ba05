"""``python -m src.evaluate``: paired on one noise, the run's own figures, a report one can read, wrong input."""

from __future__ import annotations

import csv
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.data.splits import read_prompt_file
from src.evaluate import command as evaluate
from src.evaluate.samples import STREAM
from src.rollout.levels import RolloutSettings
from src.shapes.judge import judge
from tests.conftest import ROOT
from tests.tiny_run import full_run, lora_run, run_config

TEST_PROMPTS = ROOT / "src/shapes/prompts/test.jsonl"
NASTY = "<script>alert('x')</script> & \"a red circle\", ünïcode 圆 $' \\n"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """``python -m src.evaluate`` in this process."""
    monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
    return evaluate.main()


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "samples.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pictures(out: Path, model: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "images" / model).iterdir())}


class Page(HTMLParser):
    """What stands on a report, and whether its elements are closed in order."""

    VOID = {"meta", "img", "br", "input", "line", "circle"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run, the same adapter again as a PEFT folder, and a run of full fine-tuning, with base, n=1."""
    out, patch = tmp_path_factory.mktemp("evaluate") / "out", pytest.MonkeyPatch()
    again = f"adapters={{again: {lora_run().adapter}, full: {full_run().path}}}"
    with patch.context() as patched:
        assert run(patched, f"run={lora_run().path}", again, "n=1", "max_prompts=4", f"out={out}") == 0
    return out


def test_the_base_has_the_figures_of_the_runs_own_report(compared: Path) -> None:
    """The same prompts and seed: what the run measured before training."""
    before = json.loads(lora_run().before.read_text(encoding="utf-8"))
    means = summary(compared)["means"]["base"]
    for name, value in before["means"].items():
        assert means["all prompts"][name]["value"] == pytest.approx(value, abs=1e-9), name
    for kind, figures in before["by_kind"].items():
        for name, value in figures.items():
            if name != "n":
                assert means[kind][name]["value"] == pytest.approx(value, abs=1e-9), (kind, name)


def test_the_trained_models_have_the_figures_of_their_policies_loaded_alone(compared: Path) -> None:
    """Adapters switched on one base, and weights lent to it, against a policy that has nothing else in it."""
    from src import build
    from src.generate import command as generate
    from src.rollout.levels import roll_out
    from src.rollout.noise import RolloutKey

    records = read_prompt_file(TEST_PROMPTS)[:4]
    alone = {lora_run().path.name: {"lora": {}, "adapter": str(lora_run().adapter)}, "full": {"lora": None}}
    for model, changes in alone.items():
        config = run_config(lora_run())
        chosen = {"model": {**build.plain(config.model), **changes}, "weights": None, "plugins": []}
        chosen["weights"] = full_run().best_weights if model == "full" else None
        policy = generate.load_policy(chosen)
        keys = [RolloutKey(config.evaluation.seed, STREAM, 0, index, 0) for index in range(4)]
        with torch.no_grad():
            rolled = roll_out(
                policy, policy.decoder(), [r.prompt for r in records], keys, RolloutSettings.of(config.rollout)
            )
        correct = judge(rolled.pixels.cpu(), records).all_correct.float()
        own = [row for row in rows(compared) if row["model"] == model]
        assert [row["plan"] for row in own] == rolled.plans
        assert [float(row["detail/all_correct"]) for row in own] == correct.tolist()
        for row, pixels in zip(own, rolled.pixels, strict=True):
            assert pictures(compared, model)[Path(row["file"]).name] == png(pixels, compared.parent)


def png(pixels: torch.Tensor, folder: Path) -> bytes:
    from src.generate.command import save_png

    save_png(folder / "one.png", pixels.cpu())
    return (folder / "one.png").read_bytes()


def test_the_same_adapter_twice_differs_by_exactly_nothing_and_training_by_something(compared: Path) -> None:
    found = summary(compared)
    name = lora_run().path.name
    twice = next(d for d in found["differences"] if (d["of"], d["to"]) == ("again", name))
    for figures in twice["figures"].values():
        for estimate in figures.values():
            assert estimate["value"] == 0.0
            assert estimate["low"] in (0.0, None)
    assert pictures(compared, "again") == pictures(compared, name)
    assert pictures(compared, "base") != pictures(compared, name)
    assert pictures(compared, "base") != pictures(compared, "full")
    # Base, A, again, full: every pair once, the later less the earlier.
    assert len(found["differences"]) == 6


def test_differences_and_means_are_those_of_the_csv(compared: Path) -> None:
    found, lines = summary(compared), rows(compared)
    rewards = {m: [float(r["reward"]) for r in lines if r["model"] == m] for m in found["means"]}
    for model, values in rewards.items():
        assert found["means"][model]["all prompts"]["reward"]["value"] == pytest.approx(math.fsum(values) / 4)
    for d in found["differences"]:
        wanted = (math.fsum(rewards[d["of"]]) - math.fsum(rewards[d["to"]])) / 4
        assert d["figures"]["all prompts"]["reward"]["value"] == pytest.approx(wanted, abs=1e-12)


def test_the_report_stands_alone_and_has_every_prompt_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt is hostile; nothing is known of it, so it has pictures and plans but no reward."""
    out, prompts = tmp_path / "out", [NASTY, "two green squares", "a yellow circle"]
    given = [f"prompts={prompt}" for prompt in prompts]
    assert run(monkeypatch, *given, "rewards=shapes", "n=3", "picture_prompts=2", f"out={out}") == 0
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.texts["h3"] == prompts
    everything = "".join(part for parts in page.texts.values() for part in parts)
    assert all(everything.count(prompt) == 1 for prompt in prompts)
    assert "alert" not in "".join(page.texts["script"])
    images = [attributes for tag, attributes in page.attributes if tag == "img"]
    assert len(images) == 2 * 3
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    links = [a for _, attributes in page.attributes for a in ("href", "src") if a in attributes]
    assert links == ["src"] * 6, "nothing is loaded from elsewhere"
    unjudged = [row for row in rows(out) if row["prompt"] == NASTY]
    assert [row["reward"] for row in unjudged] == ["", "", ""]
    figures = summary(out)["means"]["base"]["all prompts"]
    assert (figures["reward"]["samples"], figures["plan/ended"]["samples"]) == (6, 9)
    assert 1 <= figures["diversity/vendi"]["value"] <= 3
    assert len(pictures(out, "base")) == 9


def test_leaving_prompts_out_changes_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = read_prompt_file(TEST_PROMPTS)
    count = next(index for index, record in enumerate(records) if record.task_type == "count")
    asked = ("data=shapes", "rewards=shapes", "n=1")
    assert run(monkeypatch, *asked, f"max_prompts={count + 1}", f"out={tmp_path / 'all'}") == 0
    assert run(monkeypatch, *asked, "max_prompts=1", "kinds=[count]", f"out={tmp_path / 'kind'}") == 0
    every, one = pictures(tmp_path / "all", "base"), pictures(tmp_path / "kind", "base")
    assert list(one) == [f"{count:05d}_00.png"]
    assert one.items() <= every.items()
    assert {row["kind"] for row in rows(tmp_path / "kind")} == {"count"}


@pytest.mark.parametrize(
    ("on_error", "message"),
    [("raise", "RuntimeError: broke"), ("drop", "none of 1 images could be judged")],
)
def test_an_expert_that_always_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_error: str, message: str
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("broke")

    monkeypatch.setattr("src.rewards.experts.shapes_judge.ShapesJudge.score", fails)
    asked = ("prompts=two green squares", "rewards=shapes", f"rewards.on_error={on_error}", "n=1")
    assert run(monkeypatch, *asked, f"out={tmp_path / 'out'}") == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: reward expert 'shapes': ")
    assert message in told
    assert list(tmp_path.iterdir()) == []


def test_pictures_an_expert_fails_on_are_left_out_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from src.rewards.experts.shapes_judge import ShapesJudge

    good = ShapesJudge.score

    def picky(self: Any, pixels: Any, records: Any) -> Any:
        if any(record.prompt == "a yellow circle" for record in records):
            raise RuntimeError("broke")
        return good(self, pixels, records)

    monkeypatch.setattr(ShapesJudge, "score", picky)
    asked = ("prompts=two green squares", "prompts=a yellow circle", "rewards=shapes", "rewards.on_error=drop", "n=2")
    assert run(monkeypatch, *asked, f"out={tmp_path / 'out'}") == 0
    assert "warning: shapes left out pictures that it failed on" in capsys.readouterr().err
    assert [row["reward"] == "" for row in rows(tmp_path / "out")] == [False, False, True, True]
    assert summary(tmp_path / "out")["means"]["base"]["all prompts"]["reward"]["samples"] == 2


def misfits(folder: Path) -> None:
    """Adapters and runs that cannot be used, below `folder`."""
    source = lora_run().adapter
    config = (source / "adapter_config.json").read_text(encoding="utf-8")
    weights = load_file(str(source / "adapter_model.safetensors"))
    wide = {name: value.repeat(1, 2) if "lora_A" in name else value for name, value in weights.items()}
    for name, changed in (("wide", wide), ("short", dict(list(weights.items())[:-1]))):
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(config, encoding="utf-8")
        save_file(
            {key: value.contiguous() for key, value in changed.items()}, folder / name / "adapter_model.safetensors"
        )
    (folder / "empty").mkdir()
    (folder / "bicot_lora-20260101").mkdir()
    (folder / "bicot_lora-20260101" / "config.yaml").write_text("model: {path: gone}\n", encoding="utf-8")
    (folder / "full").mkdir()
    (folder / "full" / "config.yaml").write_text(full_run().config.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "full" / "checkpoints").mkdir()
    state = load_file(str(full_run().best_weights))
    first = next(iter(state))
    save_file({first: state[first][:1].contiguous()}, folder / "full" / "checkpoints" / "best.safetensors")
    other = folder / "other" / "config.yaml"
    other.parent.mkdir()
    base = ROOT / "src/shapes/checkpoint"
    other.write_text(lora_run().config.read_text(encoding="utf-8").replace(str(base), str(folder / "empty")))
    (other.parent / "adapter").mkdir()
    for file in source.iterdir():
        (other.parent / "adapter" / file.name).write_bytes(file.read_bytes())


SHAPES = ["data=shapes", "rewards=shapes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rewards=shapes"], "data: missing, and there is no run to take the prompts from"),
        (["data=shapes"], "rewards: missing, and there is no run to take the experts from"),
        ([*SHAPES, "n=0"], "n=0: expected an integer >= 1"),
        ([*SHAPES, "resamples=3"], "resamples=3: expected an integer >= 100"),
        ([*SHAPES, "max_prompts=0"], "max_prompts=0: expected an integer >= 1"),
        ([*SHAPES, "kinds=[cuont]"], "kinds=cuont: no prompt is of this kind; there are "),
        ([*SHAPES, "kinds=[]"], "kinds=[]: expected at least one kind"),
        ([*SHAPES, "prompts=a"], "data, prompts: give one of the two"),
        (["rewards=shapes", "prompts= "], "prompts: a prompt is empty"),
        ([*SHAPES, "embedding=clip"], "embedding=clip: no expert with that name embeds pictures"),
        ([*SHAPES, "embeding=pixels"], "embeding: no such key. Did you mean embedding?"),
        (["run={tmp}/bicot_lora"], "Did you mean {tmp}/bicot_lora-20260101?"),
        ([*SHAPES, "adapters=[{tmp}/bicot_lora-2026]"], "no such folder; give the folder of a run"),
        ([*SHAPES, "adapters=[{tmp}/empty]"], "neither a run's folder nor a PEFT adapter"),
        ([*SHAPES, "adapters={tmp}/wide"], "wide: model.adapter={tmp}/wide: does not fit the base model"),
        ([*SHAPES, "adapters={tmp}/short"], "short: model.adapter={tmp}/short: does not fit the base model"),
        ([*SHAPES, "adapters=[{tmp}/wide,{tmp}/wide]"], "two models are called wide; name them"),
        ([*SHAPES, "adapters={{base: {tmp}/wide}}"], "two models are called base"),
        (["run={tmp}/full"], "does not fit the base model: network."),
        (["run={run}", "adapters={tmp}/other"], "all must have one base"),
        ([*SHAPES, "base={tmp}/none"], "base={tmp}/none: no such folder"),
        ([*SHAPES, "out={tmp}/wide"], "out={tmp}/wide: is not empty"),
    ],
)
def test_wrong_input_gives_one_message_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    misfits(tmp_path)
    names = {"tmp": tmp_path, "run": lora_run().path}
    before = sorted(tmp_path.rglob("*"))
    given = [argument.format(**names) for argument in arguments]
    out = [] if any(argument.startswith("out=") for argument in given) else [f"out={tmp_path / 'out'}"]
    capsys.readouterr()
    assert run(monkeypatch, *given, *out) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1, told
    assert message.format(**names) in told[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_go_by_their_names_below_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    for name, source in (("mine", lora_run()), ("whole", full_run())):
        (tmp_path / "runs" / name).mkdir()
        for entry in source.path.iterdir():
            (tmp_path / "runs" / name / entry.name).symlink_to(entry)
        # A run's config is no link out of its folder.
        (tmp_path / "runs" / name / "config.yaml").unlink()
        shutil.copy(source.config, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "run=mine", "adapters=[whole]", "n=1", "max_prompts=1", "out=out") == 0
    models = summary(tmp_path / "out")["models"]
    assert [(model["name"], model["run"]) for model in models] == [
        ("base", None),
        ("mine", "runs/mine"),
        ("whole", "runs/whole"),
    ]


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("src.evaluate.report_html.report", interrupted)
    asked = ("prompts=two green squares", "rewards=shapes", "n=1", "max_prompts=1")
    assert run(monkeypatch, *asked, f"out={tmp_path / 'out'}") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert list(tmp_path.iterdir()) == []


def test_small_adapters_folder_names_and_overwriting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PEFT folder called adapter goes by its run's name; what was there is replaced when told to."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "samples.csv").write_text("old")
    asked = ("prompts=two green squares", "rewards=shapes", "n=2", f"adapters={lora_run().adapter}", "temperature=0.7")
    assert run(monkeypatch, *asked, f"out={out}", "overwrite=true") == 0
    assert sorted(path.name for path in out.iterdir()) == ["images", "report.html", "samples.csv", "summary.json"]
    assert (out / "samples.csv").read_text() != "old"
    found = summary(out)
    assert [model["name"] for model in found["models"]] == ["base", lora_run().path.name]
    assert (found["sampling"]["plan_temperature"], found["sampling"]["image_temperature"]) == (0.7, 0.7)
    # No run was named, so the model's own sampling holds for the rest.
    assert found["sampling"]["guidance_scale"] == 1.5
