"""The recipe of a world's checkpoint, the embedded one's to begin with: trains the VQ model, then the warm start.

    python -m src.shapes.pretrain                       makes the shipped checkpoint anew
    python -m src.shapes.pretrain --out DIR --seed 1    another one, elsewhere
    python -m src.shapes.pretrain --world large --device cuda --out DIR     the larger world's, on a card

Three stages, on one CPU thread unless told otherwise: the stock JanusVQVAE on drawings (`src.shapes.vq`), the
supervised warm start of the language model (`src.shapes.warmstart`), and a measurement on test combinations
with a plain sampler (`src.shapes.sampler`). Everything is drawn from one seed.

The warm start plants systematic misreadings on purpose: each form of prompt is also taught in one fixed
wrong way (`Form.misreading` in `src.shapes.wordings`), and one object is also drawn as another
(`MISDRAWN` in `src.shapes.warmstart`). Reinforcement learning from this checkpoint therefore removes a
planted bias, one that a lower sampling temperature cannot remove; it does not teach the model to see.

Writes an ordinary transformers Janus directory and RECIPE.json: options, and what was measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.shapes.recipes import MISREADINGS, RECIPES, ModelSize, VQRecipe, WarmStartRecipe
from src.shapes.worlds import SMALL, WORLDS, World

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

    from src.shapes.splits import DrawnPrompt

LOG = logging.getLogger(__name__)
DEFAULT_OUT = Path(__file__).parent / "checkpoint"


def build_parser(world: str = SMALL.name) -> argparse.ArgumentParser:
    """The options, with the defaults of a world; importing nothing heavy keeps --help fast."""
    parser = argparse.ArgumentParser(
        prog="python -m src.shapes.pretrain",
        description="Make a Janus checkpoint of the drawn world: VQ model, then supervised warm start.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,  # `main` looks for --world beforehand, by its whole name
    )
    small = world == SMALL.name
    parser.add_argument("--world", choices=WORLDS, default=world, help="what is drawn; the defaults below are its")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT if small else None, required=not small, help="directory to write"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into --out even if there is something")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="where the models are trained, such as cuda")
    size, vq, warm = RECIPES[world].size, RECIPES[world].vq, RECIPES[world].warm_start
    parser.add_argument("--hidden", type=int, default=size.hidden, help="width of the language model")
    parser.add_argument("--layers", type=int, default=size.layers, help="layers of the language model")
    parser.add_argument("--head-width", type=int, default=size.head_width, help="width of an attention head")
    parser.add_argument("--code-width", type=int, default=size.code_width, help="width of the VQ model's codes")
    parser.add_argument("--channels", type=int, default=size.channels, help="of the VQ model's first convolutions")
    parser.add_argument("--decoder-steps", type=int, default=vq.decoder_steps, help="VQ decoder, tokens to pixels")
    parser.add_argument("--encoder-steps", type=int, default=vq.encoder_steps, help="VQ encoder, pixels to tokens")
    parser.add_argument("--steps", type=int, default=warm.steps, help="warm start of the language model")
    parser.add_argument("--plan-batch", type=int, default=warm.plan_batch, help="plans a warm-start step")
    parser.add_argument("--picture-batch", type=int, default=warm.picture_batch, help="pictures a warm-start step")
    parser.add_argument("--lr", type=float, default=warm.lr, help="peak learning rate of the warm start")
    parser.add_argument("--initial-std", type=float, default=warm.initial_std, help="of the language model's matrices")
    parser.add_argument("--misread", type=float, default=warm.misread, help="share of targets read in the wrong way")
    parser.add_argument(
        "--misreading", choices=MISREADINGS, default=warm.misreading, help="the form's fixed one, or any other picture"
    )
    parser.add_argument("--misdraw", type=float, default=warm.misdraw, help="share of pictures with the drawing flaw")
    parser.add_argument("--crispness-drawings", type=int, default=2000, help="drawings the VQ model is measured on")
    parser.add_argument("--eval-prompts", type=int, default=512, help="test prompts measured, 0 for none")
    return parser


def measure(
    model: JanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[DrawnPrompt],
    seed: int,
    temperature: float = 1.0,
    guidance_scale: float = 1.5,
    world: World = SMALL,
) -> dict[str, Any]:
    """One sample of each prompt, judged: all-correct in all and by kind, and the share of plans that end."""
    import torch

    from src.shapes.judge import judge
    from src.shapes.sampler import draw
    from src.shapes.splits import to_record
    from src.shapes.wordings import KINDS

    generator = torch.Generator().manual_seed(seed)
    drawn = draw(model, tokenizer, [prompt.text for prompt in prompts], generator, temperature, guidance_scale)
    right = judge(drawn.pixels, [to_record(prompt) for prompt in prompts], world).all_correct.double()
    by_kind = {}
    for kind in KINDS:
        rows = [row for row, prompt in enumerate(prompts) if prompt.kind == kind]
        if rows:
            by_kind[kind] = round(right[rows].mean().item(), 4)
    return {
        "temperature": temperature,
        "guidance_scale": guidance_scale,
        "prompts": len(prompts),
        "all_correct": round(right.mean().item(), 4),
        "all_correct_by_kind": by_kind,
        "plans_ended": round(drawn.ended.double().mean().item(), 4),
    }


def size_of(options: argparse.Namespace) -> ModelSize:
    """The model's sizes. Raises ValueError for those that do not go together."""
    return ModelSize(options.hidden, options.layers, options.head_width, options.code_width, options.channels)


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    """Run the recipe; returns what RECIPE.json holds."""
    import torch

    from src.shapes.model import build_model, save_checkpoint
    from src.shapes.splits import split_prompts, training_pool
    from src.shapes.tokens import build_tokenizer
    from src.shapes.vq import crispness, train_vq
    from src.shapes.warmstart import warm_start

    torch.set_num_threads(options.threads)
    if options.device != "cpu":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    started = time.perf_counter()
    world = WORLDS[options.world]
    tokenizer = build_tokenizer(world)
    model = build_model(tokenizer, world, size_of(options)).to(options.device)
    LOG.info(
        "%.1f M parameters on %s", sum(parameter.numel() for parameter in model.parameters()) / 1e6, options.device
    )

    train_vq(model.model.vqmodel, VQRecipe(options.decoder_steps, options.encoder_steps), generator, world)
    report: dict[str, Any] = {
        "options": {name: value for name, value in vars(options).items() if name not in ("out", "overwrite")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vq_crispness": crispness(model.model.vqmodel, options.crispness_drawings, generator, world=world),
        "vq_seconds": round(time.perf_counter() - started),
    }
    LOG.info("VQ model: %.1f %% of drawings unchanged by encode -> decode", 100 * report["vq_crispness"])

    recipe = WarmStartRecipe(
        steps=options.steps,
        plan_batch=options.plan_batch,
        picture_batch=options.picture_batch,
        lr=options.lr,
        misread=options.misread,
        misreading=options.misreading,
        misdraw=options.misdraw,
        initial_std=options.initial_std,
    )
    report["last_losses"] = warm_start(model, tokenizer, training_pool(world), recipe, options.seed, world)
    report["seconds"] = round(time.perf_counter() - started)
    report["torch"] = torch.__version__
    if torch.device(options.device).type == "cuda":
        report["card"] = torch.cuda.get_device_name(options.device)
    save_checkpoint(model, tokenizer, options.out)
    write_report(report, options.out)
    if options.eval_prompts:
        prompts = split_prompts("test", world)[: options.eval_prompts]
        report["test"] = measure(model, tokenizer, prompts, options.seed, world=world)
        LOG.info("test combinations at default sampling: %s", report["test"])
        write_report(report, options.out)
    return report


def write_report(report: dict[str, Any], folder: Path) -> None:
    """RECIPE.json next to the checkpoint."""
    (folder / "RECIPE.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--world", choices=WORLDS, default=SMALL.name)
    parser = build_parser(first.parse_known_args(arguments)[0].world)
    options = parser.parse_args(arguments)
    if options.plan_batch < options.picture_batch:
        parser.error(f"--plan-batch {options.plan_batch}: the {options.picture_batch} pictures are those of its plans")
    try:
        size_of(options)
    except ValueError as error:
        parser.error(str(error))
    from src.shapes.splits import holds_something

    if not options.overwrite and options.out != DEFAULT_OUT and holds_something(options.out):
        parser.error(f"--out {options.out}: is not empty; choose another directory or add --overwrite")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    print(json.dumps(pretrain(options), indent=2))


if __name__ == "__main__":
    main()
