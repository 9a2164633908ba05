"""The model card of an export: YAML the hub reads, the recipe, scores before and after, samples, how to load it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from src.config.schema import ROOT
from src.runs.folder import leads_out

CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")
PUBLISHERS = ("deepseek-ai", "deepseek-community")  # of Janus-Pro, whose weights have their own licence
DEEPSEEK = {
    "license": "other",
    "license_name": "deepseek-model-license",
    "license_link": "https://github.com/deepseek-ai/DeepSeek-LLM/blob/main/LICENSE-MODEL",
}
# Rows of the recipe: label, and key in the run's config.
RECIPE = (
    ("algorithm", "algorithm.name"),
    ("rewards", "rewards.experts"),
    ("steps", "trainer.max_steps"),
    ("learning rate", "optim.lr"),
    ("KL weight (beta)", "algorithm.beta"),
    ("KL estimator", "algorithm.kl"),
    ("clip", "algorithm.clip_high"),
    ("LoRA rank", "model.lora.r"),
    ("LoRA alpha", "model.lora.alpha"),
    ("rollouts a prompt", "rollout.group_size"),
    ("prompts a step", "rollout.prompts_per_step"),
    ("guidance scale", "rollout.guidance_scale"),
    ("plan tokens at most", "rollout.max_plan_tokens"),
    ("seed", "run.seed"),
)
Z95 = 1.959963984540054  # the normal distribution's 0.975 quantile


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The content of a card.

    name: its title. base: the base's name on the hub, None if it has none. base_folder: the local path of the base.
    library: peft | transformers | None. license: asked for; None: the base's. run: its folder, None where what was
    exported has none; config, summary: what is in it.
    """

    name: str
    base: str | None
    base_folder: Path
    library: str | None
    license: str | None = None
    run: Path | None = None
    config: Mapping[str, Any] | None = None
    summary: Mapping[str, Any] | None = None


def hub_name(folder: Path, repository: str | None = None) -> str | None:
    """The base's name on the hub: `repository`, or from its path in the Hugging Face cache; None: neither."""
    if repository is not None:
        return repository
    cached = CACHED.search(str(folder.expanduser().absolute()) + "/")
    return None if cached is None else "/".join(cached.groups())


def complete_card(folder: Path, facts: CardFacts) -> None:
    """Add front matter and the run's facts to the README.md in `folder`, and copy the run's samples next to it."""
    page = folder / "README.md"
    body = page.read_text(encoding="utf-8")
    parts = [front_matter(facts), f"# {facts.name}", body.strip()]
    parts += [
        part for part in (recipe(facts), scores(facts.summary, _prompts_once(facts)), _samples(folder, facts)) if part
    ]
    parts.append(_origin(facts))
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def front_matter(facts: CardFacts) -> str:
    """The YAML block; ``base_model`` only where it is a name on the hub, which takes no paths there."""
    from huggingface_hub import ModelCardData

    lora = ["lora"] if facts.library == "peft" else []
    more: dict[str, Any] = {} if facts.base is None else {"base_model_relation": "adapter" if lora else "finetune"}
    data = ModelCardData(
        base_model=facts.base,
        library_name=facts.library,
        pipeline_tag="text-to-image",
        tags=[*lora, "janus", "text-to-image", "reinforcement-learning", "bicot-grpo", "arxiv:2505.00703"],
        **(more | licence(facts)),
    )
    return f"---\n{data.to_yaml()}\n---"


def licence(facts: CardFacts) -> dict[str, str]:
    """The card's licence keys: as requested, or the base's; empty if unknown."""
    if facts.license is not None:
        return {"license": facts.license}
    if facts.base is not None and facts.base.partition("/")[0] in PUBLISHERS:
        return dict(DEEPSEEK)
    if facts.base is None and facts.base_folder.resolve().is_relative_to(ROOT / "src"):
        return {"license": "apache-2.0"}  # this project's, of the embedded checkpoint
    return {}


def recipe(facts: CardFacts) -> str:
    """A table of the main settings found in the run's config."""
    if facts.config is None:
        return ""
    rows = []
    for name, key in RECIPE:
        value: Any = facts.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            rows.append(f"| {name} | {', '.join(value) if isinstance(value, Mapping) else value} |")
    return "\n".join(["## Recipe", "", "| setting | value |", "| --- | --- |", *rows])


def scores(summary: Mapping[str, Any] | None, prompts_once: bool) -> str:
    """Tables of the test figures before and after training, in all and by kind of prompt.

    prompts_once: each test prompt was painted once, so that pictures are independent and the share of those that are
    right has an interval: Wilson's, 95 %.
    """
    figures = [key.removesuffix("_after") for key in summary or {} if key.endswith("_after")]
    if summary is None or not any(summary[f"{figure}_after"] is not None for figure in figures):
        return ""
    kinds: Mapping[str, Any] = summary.get("by_kind") or {}
    pictures = int(sum(kind["before"].get("n", 0) for kind in kinds.values()))
    counted = f"{pictures} pictures of " if pictures else ""
    lines = ["## Scores", "", f"On {counted}test prompts, before and after training.", ""]
    lines += ["| figure | before | after |", "| --- | --- | --- |"]
    for figure in figures:
        before, after = (summary.get(f"{figure}_{when}") for when in ("before", "after"))
        sampled = pictures if prompts_once and figure == "all_correct" else 0
        lines.append(f"| {figure} | {_shown(before, sampled)} | {_shown(after, sampled)} |")
    if prompts_once and pictures and "all_correct" in figures:
        lines += ["", "In brackets: 95 % interval (Wilson) over the test pictures."]
    if kinds:
        lines += ["", "| kind of prompt | pictures | reward before | reward after |", "| --- | --- | --- | --- |"]
        for kind, found in kinds.items():
            after = (found["after"] or {}).get("reward")
            n = int(found["before"].get("n", 0))
            lines.append(f"| {kind} | {n} | {_shown(found['before'].get('reward'))} | {_shown(after)} |")
    return "\n".join(lines)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share seen in `n` independent trials (Wilson 1927)."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _shown(value: float | None, n: int = 0) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (" [{:.3f}, {:.3f}]".format(*wilson(value, n)) if n else "")


def _prompts_once(facts: CardFacts) -> bool:
    return (facts.config or {}).get("evaluation", {}).get("samples_per_prompt") == 1


def _samples(folder: Path, facts: CardFacts) -> str:
    """The run's sheets, copied."""
    lines = []
    for when in ("before", "after"):
        sheet = None if facts.run is None else facts.run / f"samples_{when}.png"
        # A link would upload another file of this machine with the card.
        if sheet is not None and facts.run is not None and sheet.is_file() and leads_out(facts.run, sheet) is None:
            shutil.copyfile(sheet, folder / sheet.name)
            lines += ["", f"{when.capitalize()} training:", "", f"![samples {when} training]({sheet.name})"]
    return "\n".join(["## Samples", *lines]) if lines else ""


def _origin(facts: CardFacts) -> str:
    """Commit, versions, licence."""
    summary = facts.summary or {}
    lines = ["## Origin", ""]
    if summary.get("git_commit"):
        lines.append(f"- trainer's commit: `{summary['git_commit']}`")
    if summary.get("versions"):
        lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in summary["versions"].items()))
    known = licence(facts)
    if known:
        lines.append(
            f"- licence: {known.get('license_name', known['license'])} {known.get('license_link', '')}".rstrip()
        )
    else:
        lines.append("- licence: that of the base checkpoint, which is not known here")
    lines.append("- method: BiCoT-GRPO, [arXiv 2505.00703](https://arxiv.org/abs/2505.00703)")
    return "\n".join(lines)
