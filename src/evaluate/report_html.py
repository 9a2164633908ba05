"""The report as one HTML file that works offline: figures with intervals, plots, and every prompt's pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.evaluate.comparison import ALL, Comparison, Difference
from src.evaluate.figures import MEANINGS
from src.evaluate.forest import Line, forest, svg, written
from src.evaluate.samples import Drawn
from src.intervals import Estimate

TEMPLATE = "report.html.jinja"
THUMBNAIL = 256  # pixels; larger pictures are embedded scaled down, the files are next to the report
SMALL = 128  # pixels up to which a picture is enlarged without smoothing
PLOTTED = ("reward", "all_correct")

# A column of the tables: its head, its estimates by kind and figure, and whether it is a difference.
Column = tuple[str, Mapping[str, Mapping[str, Estimate]], bool]


def report(
    comparison: Comparison,
    drawn: Mapping[str, Sequence[Drawn]],
    pictured: frozenset[int],
    facts: Mapping[str, Any],
    picture: Callable[[str], tuple[str, int]],
) -> str:
    """The page. All outside text is escaped; every prompt appears once.

    drawn: by model, prompt by prompt. pictured: numbers of the prompts whose pictures are embedded; the others keep
    their plans and scores. facts: shown as they are, name and value. picture: see `embedded`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        all_prompts=ALL,
        by_prompt=_by_prompt(drawn),
        columns=_columns(comparison),
        comparison=comparison,
        facts=facts,
        meanings=MEANINGS,
        picture=picture,
        pictured=pictured,
        plots=[plot for name in PLOTTED if name in comparison.figures() for plot in _plots(comparison, name)],
        scores=_scores,
        small=SMALL,
        title=" | ".join(comparison.means),
        written=written,
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


def _columns(comparison: Comparison) -> list[Column]:
    """One for each model, then one for each difference."""
    means: list[Column] = [(name, own, False) for name, own in comparison.means.items()]
    return [*means, *((_pair(one), one.estimates, True) for one in comparison.differences)]


def _plots(comparison: Comparison, figure: str) -> list[str]:
    """The models' means and their differences, as ``<svg>`` elements."""
    colours = {model: number for number, model in enumerate(comparison.means)}
    means = [(model, model, own) for model, own in comparison.means.items()]
    differences = [(_pair(one), one.of, one.estimates) for one in comparison.differences]

    def groups(lines: Sequence[tuple[str, str, Any]]) -> list[tuple[str, list[Line]]]:
        def of_kind(kind: str) -> list[Line]:
            return [
                Line(label, own[kind][figure], colours[model]) for label, model, own in lines if figure in own[kind]
            ]

        return [(kind, of_kind(kind)) for kind in comparison.kinds]

    plots = (
        forest(figure, groups(means)),
        forest(f"{figure}: paired difference", groups(differences), zero=True),
    )
    return [svg(plot) for plot in plots if plot is not None]


def _pair(difference: Difference) -> str:
    return f"{difference.of} − {difference.to}"


def _by_prompt(drawn: Mapping[str, Sequence[Drawn]]) -> dict[int, dict[str, list[Drawn]]]:
    """The rollouts by prompt, in their order, then by model."""
    groups: dict[int, dict[str, list[Drawn]]] = {}
    for model, ones in drawn.items():
        for one in ones:
            groups.setdefault(one.sample.index, {}).setdefault(model, []).append(one)
    return groups


def _scores(one: Drawn) -> str:
    """A picture's scores, as its caption."""
    sample = one.sample
    scores = {**({} if sample.reward is None else {"reward": sample.reward}), **sample.scores}
    scores |= {name: sample.details[name] for name in ("all_correct",) if name in sample.details}
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
