"""The page: fields, two columns, and what each frame changes on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError
from src.demo.request import CANDIDATES, GUIDANCE, PROMPT_LETTERS, SEED, TEMPERATURE, Request
from src.demo.studio import BASE, TRAINED, Frame, Result, Studio
from src.images import to_image

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

SIDE = 288  # of a picture on the page, in pixels; larger ones stay as they are
GAP = 4  # between the tiles of several candidates, and round them
COLUMNS, LINE = 4, 22  # of the sheet of candidates; a line of text in pixels
TITLES = {BASE: "Base", TRAINED: "Trained"}
EXAMPLES = ("a red circle left of a blue square", "two green squares", "three blue circles")
WAITING = "_waiting ..._"


def build_page(studio: Studio, about: Sequence[str]) -> Any:
    """The Gradio page of a studio; about: lines on what paints."""
    import gradio as gr

    sampling = studio.sampling
    with gr.Blocks(title="BiCoT-GRPO", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# BiCoT-GRPO\nPlan a picture in words, then paint it token by token.\n\n" + "  \n".join(about))
        with gr.Row():
            prompt = gr.Textbox(
                label="Prompt", value=EXAMPLES[0], lines=1, max_length=PROMPT_LETTERS, scale=5, elem_id="prompt"
            )
            button = gr.Button("Paint", variant="primary", scale=1, elem_id="paint")
        with gr.Row():
            guidance = gr.Slider(
                *GUIDANCE, value=_inside(sampling["guidance_scale"], GUIDANCE), step=0.1, label="Guidance"
            )
            temperature = gr.Slider(
                *TEMPERATURE, value=_inside(sampling["image_temperature"], TEMPERATURE), step=0.05, label="Temperature"
            )
            seed = gr.Number(value=0, precision=0, minimum=SEED[0], maximum=SEED[1], label="Seed", elem_id="seed")
            candidates = gr.Slider(*CANDIDATES, value=1, step=1, label="Best of", elem_id="candidates")
        inputs = [prompt, guidance, temperature, seed, candidates]
        outputs: list[Any] = []
        with gr.Row():
            for side in studio.sides:
                with gr.Column():
                    gr.Markdown(f"### {TITLES[side]}")
                    outputs += [
                        gr.Textbox(label="Plan", interactive=False, lines=3, elem_id=f"plan-{side}"),
                        gr.Image(
                            label="Picture", format="png", interactive=False, height=SIDE + 32,
                            buttons=["download", "fullscreen"], elem_id=f"image-{side}"
                        ),
                        gr.Markdown(elem_id=f"status-{side}"),
                        gr.Image(
                            label="Candidates", format="png", interactive=False, visible=False, show_label=False,
                            buttons=[], elem_id=f"candidates-{side}",
                        ),
                    ]  # fmt: skip

        def paint(*fields: Any) -> Iterator[list[Any]]:
            try:
                request = Request(*fields)
                warning = studio.check(request.prompt)
            except ValueError as error:
                raise gr.Error(str(error)) from error
            if warning is not None:
                gr.Warning(warning)
            yield cleared(studio.sides, gr.Image)
            try:
                for frame in studio.paint(request):
                    yield changes(frame, studio.sides, gr.skip(), gr.Image)
            except UserError as error:
                raise gr.Error(str(error)) from error

        gr.Examples([[example] for example in EXAMPLES], [prompt])
        gr.on([button.click, prompt.submit], paint, inputs, outputs, api_name="paint", concurrency_limit=1)
    return page.queue(max_size=16)


def cleared(sides: Sequence[str], image: Any) -> list[Any]:
    """Every output emptied, before the first frame."""
    return [value for _ in sides for value in ("", None, WAITING, image(value=None, visible=False))]


def changes(frame: Frame, sides: Sequence[str], same: Any, image: Any) -> list[Any]:
    """New values of the outputs (plan, picture, status and candidates a side); `same` where one stays as it is."""
    look, result = frame.look, frame.result
    number = 0 if result is None else result.best
    plan, picture, shown = look.plans[number], same, same
    if result is not None and look.pixels is not None:
        picture = enlarged(to_image(look.pixels[result.best]))
        if len(look.plans) > 1:
            shown = image(value=candidates_sheet(look.pixels, result), visible=True)
    elif look.pixels is not None:
        picture = enlarged(mosaic(look.pixels))
    mine = [plan, picture, status(frame), shown]
    return [value for side in sides for value in (mine if side == frame.side else [same] * len(mine))]


def status(frame: Frame) -> str:
    """How far a side is; at its end its scores."""
    look, result = frame.look, frame.result
    if look.pixels is None:
        return "planning ..."
    if result is None:
        return f"painting: {look.tokens} of {look.total} tokens"
    best = result.entries[result.best]
    of = f"best of {len(result.entries)}: candidate {result.best + 1}, " if len(result.entries) > 1 else ""
    if "reward" not in best:
        return f"{look.total} tokens; no score: no expert has anything to go by in this prompt"
    figures: Mapping[str, float] = {**best["scores"], **best["details"]}
    return f"**{of}{caption(best)}**  \n" + ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def caption(entry: Mapping[str, Any]) -> str:
    """A candidate's reward, if it has one."""
    return f"reward {entry['reward']:.3f}" if "reward" in entry else "no score"


def mosaic(pixels: Tensor) -> Image.Image:
    """Pictures (N, 3, H, W) in [0, 1] side by side, in a grid close to a square."""
    from PIL import Image

    tiles = [enlarged(to_image(picture), SIDE // ceil(sqrt(len(pixels)))) for picture in pixels]
    if len(tiles) == 1:
        return tiles[0]
    columns = ceil(sqrt(len(tiles)))
    width, height = tiles[0].width + GAP, tiles[0].height + GAP
    sheet = Image.new("RGB", (columns * width - GAP, ceil(len(tiles) / columns) * height - GAP), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * width, place // columns * height))
    return sheet


def candidates_sheet(pixels: Tensor, result: Result) -> Image.Image:
    """All candidates (N, 3, H, W) in [0, 1] in rows of `COLUMNS`, under each its reward; the kept one is framed."""
    from PIL import Image, ImageDraw, ImageFont

    tiles = [enlarged(to_image(picture), SIDE // 2) for picture in pixels]
    width, height = tiles[0].width + 2 * GAP, tiles[0].height + 2 * GAP + LINE
    sheet = Image.new("RGB", (COLUMNS * width, ceil(len(tiles) / COLUMNS) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 8)
    for place, (tile, entry) in enumerate(zip(tiles, result.entries, strict=True)):
        left, top = place % COLUMNS * width, place // COLUMNS * height
        if place == result.best:
            pen.rectangle((left, top, left + width - 1, top + height - LINE - 1), fill="#2563eb")
        sheet.paste(tile, (left + GAP, top + GAP))
        pen.text((left + GAP, top + height - LINE + 2), f"{place + 1}: {caption(entry)}", fill="black", font=font)
    return sheet


def enlarged(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A small image enlarged by a whole factor without smoothing, so that it shows the decoded pixels."""
    from PIL import Image

    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _inside(value: float, bounds: tuple[float, float]) -> float:
    return min(max(float(value), bounds[0]), bounds[1])
