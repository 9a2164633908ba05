"""Evaluate: ``python -m src.evaluate run=runs/bicot_lora`` compares what a run trained with its base.

All models see the same prompts and the same noise, so that differences are paired. The folder `out` gets
summary.json (means, differences, intervals), samples.csv (one line per picture), report.html and images/.

    python -m src.evaluate run=runs/bicot_lora out=evaluated
    python -m src.evaluate run=runs/a adapters=[runs/b,other/adapter] kinds=[count,relation] n=8
    python -m src.evaluate adapters={short: runs/a, long: runs/b} prompts_file=mine.jsonl rewards=shapes
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.cli import command as cli
from src.cli.prompt_source import PromptSource, read_prompts, take_out
from src.config.errors import UserError
from src.config.masking import masked_text
from src.policies.prompt_checks import check_metadata, check_prompts, warn_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.evaluate.comparison import Comparison
    from src.evaluate.contestants import Field
    from src.evaluate.samples import Drawn
    from src.rewards.ensemble import RewardEnsemble
    from src.training.held_out import EvaluationSettings
    from src.values import PromptRecord

DEFAULT_SEED = 1234
EXIT_FAILED = 1
WRITTEN = ("images", "summary.json", "samples.csv", "report.html")
SHOWN = ("reward", "all_correct", "plan/ended", "diversity/vendi")


def evaluate(config: DictConfig, source: PromptSource) -> int:
    """One evaluation; returns the exit code: 0 done, 1 where an expert fails.

    Input errors are reported before the model's weights are loaded.
    """
    given = read_prompts(source) if source.texts or source.files else None
    from src import build
    from src.evaluate.contestants import load, locate
    from src.evaluate.diversity import embedding
    from src.policies.load import quiet
    from src.rewards.base import RewardError
    from src.rewards.coverage import silent_experts
    from src.runs.output_folder import check_free, new_folder, written_whole
    from src.training.held_out import told_nothing

    out = None if config.out is None else Path(config.out).expanduser()
    if out is not None:
        check_free(out, config.overwrite, WRITTEN)
    quiet()
    field = locate(config)
    records = chosen_records(config, field, given)
    warn_of(check_prompts(field.model, field.sampling["max_plan_tokens"], records.values()))
    rewards = experts(config, field).to(build.device())
    check_metadata(rewards, records.values())
    silent = silent_experts(rewards, {"evaluated": list(records.values())})
    for told in silent.values():
        print(f"warning: {told}", file=sys.stderr)
    try:
        space, embed = embedding(config.embedding, rewards.experts_here)
    except ValueError as error:
        raise UserError(str(error)) from error
    settings = evaluation_settings(config, field)
    policy = load(field)
    out = out or new_folder("outputs/evaluated")
    try:
        with written_whole(out, config.overwrite) as folder:
            drawn = {
                contestant.name: drawn_by(number, policy, field, rewards, records, settings, embed, folder)
                for number, contestant in enumerate(field.contestants)
            }
            samples = [one.sample for ones in drawn.values() for one in ones]
            same = told_nothing(samples, rewards.names, rewards.problems)
            for name in same.keys() - silent.keys():
                print(f"warning: {same[name]}", file=sys.stderr)
            warnings = list({**same, **silent}.values())
            comparison = write(folder, config, field, records, drawn, settings, space, warnings)
            for name, problem in rewards.problems.items():
                print(f"warning: {name} left out pictures that it failed on; the first: {problem}", file=sys.stderr)
    except RewardError as error:
        print(masked_text(f"error: {error}"), file=sys.stderr)
        return EXIT_FAILED
    print(closing_lines(comparison, out))
    return 0


def chosen_records(config: DictConfig, field: Field, given: tuple[PromptRecord, ...] | None) -> dict[int, PromptRecord]:
    """The prompts by their number among all, which keys their noise: leaving some out changes no picture.

    Raises:
        UserError: if no prompts are given, or none is left.
    """
    from src import build
    from src.runs.config import literal

    if given is not None and config.data is not None:
        raise UserError("data, prompts: give one of the two")
    if given is None:
        data = build.plain(config.data) if config.data is not None else data_of_run(field)
        if data is None:
            raise UserError(
                "data: missing, and there is no run to take the prompts from: give data=shapes, prompts_file=PATH"
                " or run=DIR"
            )
        # The seed of a run is that of its hold-out, where one file was split.
        run = {"seed": seed_of_run(field, "run", 0)}
        keyed = {"rollout": {"prompts_per_step": 1}, "run": run, "plugins": list(config.plugins)}
        made = build.build_data(literal({"data": data, **keyed}))
        given = tuple(made.test_records)
    numbered = dict(enumerate(given))
    if config.kinds is not None:
        known = sorted({record.task_type for record in given})
        unknown = [kind for kind in config.kinds if kind not in known]
        if unknown:
            raise UserError(f"kinds={unknown[0]}: no prompt is of this kind; there are {', '.join(known)}")
        numbered = {index: record for index, record in numbered.items() if record.task_type in config.kinds}
    if not numbered:
        raise UserError("data: the test part has no prompts")
    return dict(list(numbered.items())[: config.max_prompts])


def data_of_run(field: Field) -> dict[str, Any] | None:
    """The run's ``data``; None where no contestant is a run.

    Raises:
        UserError: for a data set, which may name addresses to read from: the user must confirm that.
    """
    data: dict[str, Any] | None = (field.trained or {}).get("data")
    if data is not None and (name := data.get("dataset")) is not None:
        raise UserError(
            f"{field.trained_file}: data.dataset={name}: the run's prompts come from a data set, and a run folder"
            f" cannot choose what is downloaded; give data=shapes data.path=null data.dataset={name} (and its other"
            " settings) to confirm, or prompts_file=PATH"
        )
    return data


def experts(config: DictConfig, field: Field) -> RewardEnsemble:
    """The experts of the command line, else the run's.

    Raises:
        UserError: if neither names any, or the run's were served and only its folder says where.
    """
    from src import build
    from src.runs.config import literal

    if config.rewards is not None:
        if config.remote.url is not None:
            raise UserError(f"remote.url={config.remote.url}: only for a run's own experts; use rewards.remote.url")
        chosen = build.plain(config.rewards)
    else:
        chosen = rewards_of_run(config, field)
    return build.build_rewards(literal({"rewards": chosen, "plugins": list(config.plugins)}))


def rewards_of_run(config: DictConfig, field: Field) -> dict[str, Any]:
    """A run's ``rewards``, except where they are served: a folder cannot choose who gets pictures and a token.

    Raises:
        UserError: for a run without experts, or with settings that are none, or whose server the user has to name.
    """
    from src import build
    from src.config.schema import RewardsConfig
    from src.runs.config import typed_section

    given = (field.trained or {}).get("rewards")
    if given is None:
        raise UserError(
            "rewards: missing, and there is no run to take the experts from: give rewards=shapes (--help lists"
            " them) or run=DIR"
        )
    whole = build.plain(typed_section(field.trained_file, "rewards", RewardsConfig, given))
    if not isinstance(whole["experts"], dict):
        raise UserError(f"{field.trained_file}: rewards.experts: missing; give rewards=... on the command line")
    served, here = whole["remote"]["url"], build.plain(config.remote)
    if served is not None and here["url"] is None and set(whole["experts"]) - set(whole["devices"]):
        raise UserError(
            f"{field.trained_file}: rewards.remote.url={served}: the run's experts were served there, and a run folder"
            f" cannot choose where pictures and a token are sent; give remote.url={served} to confirm, or"
            " rewards=... for other experts"
        )
    return {**whole, "remote": here}


def seed_of_run(field: Field, section: str, default: int) -> int:
    """The seed in a section of the run's config, `default` where there is none.

    Raises:
        UserError: if it is not an integer >= 0.
    """
    seed = (field.trained or {}).get(section, {}).get("seed", default)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"{field.trained_file}: {section}.seed={seed!r}: expected an integer >= 0")
    return seed


def evaluation_settings(config: DictConfig, field: Field) -> EvaluationSettings:
    """How every model samples."""
    from src.trained import settings_of
    from src.training.held_out import EvaluationSettings

    seed = seed_of_run(field, "evaluation", DEFAULT_SEED) if config.seed is None else config.seed
    return EvaluationSettings(settings_of(field.sampling), seed, config.n, config.batch_size)


def drawn_by(
    number: int,
    policy: Any,
    field: Field,
    rewards: RewardEnsemble,
    records: Mapping[int, PromptRecord],
    settings: EvaluationSettings,
    embed: Any,
    folder: Path,
) -> list[Drawn]:
    """All rollouts of one contestant, its pictures written below `folder`."""
    from src.evaluate.contestants import decoder_of
    from src.evaluate.samples import draw
    from src.images import save_png
    from src.runs.console import say

    contestant = field.contestants[number]
    (folder / "images" / contestant.folder_name).mkdir(parents=True)

    def told(done: int, total: int) -> None:
        say(f"{contestant.name}: {done} of {total} pictures ...")

    def save(pixels: Any, file: str) -> None:
        save_png(folder / file, pixels)

    with decoder_of(policy, field, number) as decoder:
        return draw(policy, decoder, rewards, records, settings, embed, save, contestant.folder_name, told)


def write(
    folder: Path,
    config: DictConfig,
    field: Field,
    records: Mapping[int, PromptRecord],
    drawn: Mapping[str, list[Drawn]],
    settings: EvaluationSettings,
    space: str,
    warnings: Sequence[str] = (),
) -> Comparison:
    """Write summary.json, samples.csv and report.html into `folder`, which already has the pictures."""
    from src.evaluate.comparison import compare
    from src.evaluate.figures import figures_of
    from src.evaluate.report_html import embedded, report
    from src.evaluate.table import write_samples
    from src.intervals import Resampling
    from src.runs.provenance import git_commit, hardware, versions
    from src.training.callbacks.report import spread

    kinds = [record.task_type for record in records.values()]
    figures = {name: figures_of(ones) for name, ones in drawn.items()}
    comparison = compare(figures, kinds, Resampling(config.resamples))
    facts = {
        "base": field.model.get("path"),
        "samples_per_prompt": settings.samples_per_prompt,
        "seed": settings.seed,
        "sampling": field.sampling,
        "embedding": space,
        **({"reward_warnings": list(warnings)} if warnings else {}),
        "resamples": config.resamples,
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    models = [contestant.facts() for contestant in field.contestants]
    summary = {"models": models, **facts, **comparison.as_json()}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_samples(folder / "samples.csv", drawn)
    chosen = {id(record) for record in spread(list(records.values()), config.picture_prompts)}
    pictured = frozenset(index for index, record in records.items() if id(record) in chosen)
    shown = {**{f"model {one['name']}": one["run"] or one["adapter"] or facts["base"] for one in models}, **facts}
    page = report(comparison, drawn, pictured, shown, partial(embedded, folder))
    (folder / "report.html").write_text(page, encoding="utf-8")
    return comparison


def closing_lines(comparison: Comparison, out: Path) -> str:
    """The main figures, and where everything is."""
    from src.evaluate.comparison import ALL
    from src.evaluate.forest import written

    lines = [""]
    for figure in SHOWN:
        for name, estimates in comparison.means.items():
            if figure in estimates[ALL]:
                lines.append(f"{figure:16} {name:24} {written(estimates[ALL][figure])}")
    for difference in comparison.differences:
        for figure in SHOWN[:2]:
            if figure in difference.estimates[ALL]:
                pair = f"{difference.of} - {difference.to}"
                lines.append(f"{figure:16} {pair:24} {written(difference.estimates[ALL][figure])}   (paired)")
    files = {"report": "report.html", "figures": "summary.json", "pictures, plans, scores": "samples.csv"}
    lines += [f"{what}: {out / file}" for what, file in files.items()]
    return "\n".join(lines)


COMMAND = cli.Command(
    name="evaluate",
    about="Compare base and trained models on the same prompts and noise: figures with intervals, CSV, HTML report.",
    examples=(
        "run=runs/bicot_lora out=evaluated",
        "run=runs/a adapters=[runs/b,other/adapter] kinds=[count,relation] n=8",
        "'adapters={short: runs/a, long: runs/b}' prompts_file=mine.jsonl rewards=shapes",
    ),
    task=partial(evaluate, source=PromptSource()),
    config="evaluate",
    groups=("model", "data", "rewards"),
    keys=(
        "run=NAME | run=DIR                what it trained beside its base, on its test prompts, by its experts",
        "adapter=DIR adapters=[DIR,...]    more: run folders or PEFT folders; {name: DIR} names them",
        "data=... rewards=...              other prompts (their test part), other experts",
        "remote.url remote.token_file      where the run's experts are served; its folder does not choose that",
        'prompts="..." prompts_file=PATH   prompts instead of data, as in src.generate',
        "kinds max_prompts n seed temperature guidance_scale max_plan_tokens batch_size",
        "embedding=pixels|EXPERT           what diversity is measured on",
        "out=DIR                           where to; overwrite=true replaces what is there",
    ),
)


def main() -> int:
    """Entry point."""
    source, arguments = take_out(sys.argv[1:])
    return cli.run(replace(COMMAND, task=partial(evaluate, source=source)), arguments)


if __name__ == "__main__":
    sys.exit(main())
