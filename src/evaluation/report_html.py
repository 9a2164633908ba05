"""The report as one HTML file that works offline: figures with intervals, plots, and every prompt's pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from src.evaluation.comparison import ALL, Comparison, Difference
from src.evaluation.figures import MEANINGS
from src.evaluation.forest import Line, forest, written
from src.evaluation.page import SCRIPT, STYLE
from src.evaluation.samples import Drawn
from src.intervals import Estimate

THUMBNAIL = 256  # pixels; larger pictures are embedded scaled down, the files stand beside the report
SMALL = 128  # pixels up to which a picture is enlarged without smoothing
PLOTTED = ("reward", "all_correct")
Estimator = Mapping[str, Mapping[str, Estimate]]


def report(
    comparison: Comparison,
    drawn: Mapping[str, Sequence[Drawn]],
    pictured: frozenset[int],
    facts: Mapping[str, Any],
    picture: Callable[[str], tuple[str, int]],
) -> str:
    """The page. Everything that comes from outside is escaped; every prompt stands on it once.

    drawn: by model, prompt by prompt. pictured: numbers of the prompts whose pictures are embedded; the others keep
    their plans and scores. facts: shown as they are, name and value. picture: see `embedded`.
    """
    title = " | ".join(comparison.means)
    listed = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Evaluation: {escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{comparison.kinds[ALL]} prompts, the same noise for every model. Intervals: 95 %, BCa bootstrap over"
            " prompts. A difference in bold has an interval that leaves out 0; nothing is corrected for the number of"
            " figures, of which one in twenty would do so by chance.</p>",
            f'<details><summary>Settings</summary><div class="wide"><table>{listed}</table></div></details>',
            "<h2>By kind of prompt</h2>",
            *(_plots(comparison, name) for name in PLOTTED if name in comparison.figures()),
            "<h2>All figures</h2>",
            *(_tables(comparison, kind) for kind in comparison.kinds),
            "<h2>Prompts</h2>",
            _filter(list(comparison.kinds)[1:]),
            *_cards(drawn, pictured, picture),
            f"<script>{SCRIPT}</script></body></html>\n",
        )
    )


def embedded(folder: Path, file: str) -> tuple[str, int]:
    """A picture's file below `folder` as a data URI, larger ones scaled down, and its own width in pixels."""
    from PIL import Image

    path = folder / file
    with Image.open(path) as image:
        width = image.width
        if max(image.size) <= THUMBNAIL:
            return _uri("png", path.read_bytes()), width
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        written_to = io.BytesIO()
        image.save(written_to, format="JPEG", quality=85)
    return _uri("jpeg", written_to.getvalue()), width


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _plots(comparison: Comparison, figure: str) -> str:
    models = list(comparison.means)
    means = [
        (kind, [Line(model, comparison.means[model][kind][figure], i) for i, model in enumerate(models)
                if figure in comparison.means[model][kind]])
        for kind in comparison.kinds
    ]  # fmt: skip
    differences = [
        (kind, [Line(_pair(d), d.estimates[kind][figure], models.index(d.of)) for d in comparison.differences
                if figure in d.estimates[kind]])
        for kind in comparison.kinds
    ]  # fmt: skip
    return forest(figure, means) + forest(f"{figure}: paired difference", differences, zero=True)


def _pair(difference: Difference) -> str:
    return f"{difference.of} − {difference.to}"


def _tables(comparison: Comparison, kind: str) -> str:
    columns: list[tuple[str, Estimator, bool]] = [(name, own, False) for name, own in comparison.means.items()]
    columns += [(_pair(d), d.estimates, True) for d in comparison.differences]
    head = "".join(f"<th>{escape(name)}</th>" for name, _, _ in columns)

    def row(figure: str) -> str:
        cells = (_cell(own[kind].get(figure), signed) for _, own, signed in columns)
        return f"<tr><td>{_named(figure)}</td>{''.join(cells)}</tr>"

    shown = (figure for figure in comparison.figures() if any(figure in own[kind] for _, own, _ in columns))
    opened = " open" if kind == ALL else ""
    return (
        f"<details{opened}><summary>{escape(kind)} ({comparison.kinds[kind]})</summary>"
        f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(map(row, shown))}</table></div></details>'
    )


def _named(figure: str) -> str:
    meaning = MEANINGS.get(figure)
    return escape(figure) + (f"<br><small>{escape(meaning)}</small>" if meaning else "")


def _cell(estimate: Estimate | None, signed: bool) -> str:
    if estimate is None:
        return "<td></td>"
    clear = ' class="clear"' if signed and estimate.excludes_zero else ""
    return f"<td{clear}>{escape(written(estimate))}</td>"


def _filter(kinds: Sequence[str]) -> str:
    options = "".join(f'<option value="{escape(kind)}">{escape(kind)}</option>' for kind in kinds)
    return (
        f'<div class="filter"><label>kind <select id="kind"><option value="">all</option>{options}</select></label> '
        '<label>words <input id="words" type="search"></label> <span id="shown"></span></div>'
    )


def _cards(
    drawn: Mapping[str, Sequence[Drawn]], pictured: frozenset[int], picture: Callable[[str], tuple[str, int]]
) -> list[str]:
    """A card a prompt, in their order: the models side by side."""
    groups: dict[int, dict[str, list[Drawn]]] = {}
    for model, ones in drawn.items():
        for one in ones:
            groups.setdefault(one.sample.index, {}).setdefault(model, []).append(one)
    cards = []
    for index, by_model in groups.items():
        first = next(iter(by_model.values()))[0].sample
        models = "".join(
            f'<div><h4>{escape(model)}</h4><div class="samples">'
            f"{''.join(_figure(model, one, picture if index in pictured else None) for one in ones)}</div></div>"
            for model, ones in by_model.items()
        )
        cards.append(
            f'<section class="card" data-kind="{escape(first.kind)}"><h3>{escape(first.prompt)}'
            f'<span class="kind">{escape(first.kind)}</span></h3><div class="models">{models}</div></section>'
        )
    return cards


def _figure(model: str, one: Drawn, picture: Callable[[str], tuple[str, int]] | None) -> str:
    sample, image = one.sample, ""
    if picture is not None:
        uri, width = picture(one.file)
        small = ' class="small"' if width <= SMALL else ""
        image = f'<img{small} src="{uri}" loading="lazy" alt="{escape(model)}, sample {one.number}">'
    scores = {**({} if sample.reward is None else {"reward": sample.reward}), **sample.scores}
    scores |= {name: sample.details[name] for name in ("all_correct",) if name in sample.details}
    shown = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
    plan = escape(sample.plan) + ("" if sample.ended else " …")
    return f'<figure>{image}<figcaption>{escape(shown)}<div class="plan">{plan}</div></figcaption></figure>'
