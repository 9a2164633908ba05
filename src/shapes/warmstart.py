"""The supervised warm start of the language model, with systematic misreadings planted.

Targets are drawn anew at every step: a prompt of the training split, read rightly or (with a given
probability) in the one fixed wrong way of its form, arranged at random, written as a plan and drawn as
image tokens. So the model learns to plan and to draw, and learns a bias with it that no lower sampling
temperature undoes: that bias is what reinforcement learning is then seen to remove.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from src.policies.contexts import encode_image_context, encode_plan_context, unconditional_context
from src.shapes.grammar import format_plan
from src.shapes.recipes import MISREADINGS, WarmStartRecipe
from src.shapes.requirements import arrange, satisfied
from src.shapes.sampler import positions
from src.shapes.scenes import scene_labels
from src.shapes.splits import DrawnPrompt
from src.shapes.tokens import BOI, labels_to_tokens
from src.shapes.wordings import Form
from src.shapes.worlds import SMALL, ObjectKind, Scene, World
from src.values import TokenContext

LOG = logging.getLogger(__name__)

#: The image level's own planted flaw: what a plan calls the first is drawn as the second.
MISDRAWN = {ObjectKind("green", "triangle"): ObjectKind("green", "square")}

#: How often a kind is drawn, relative to the others.
KIND_WEIGHTS = {"reasoning": 2.0}


@dataclass(frozen=True, slots=True)
class Example:
    """One target: the prompt's text, its plan, and the scene that is drawn."""

    prompt: str
    plan: str
    picture: Scene


class ExampleMaker:
    """Draws training targets: kinds equally often (reasoning twice), forms by the root of their size."""

    def __init__(self, prompts: Sequence[DrawnPrompt], recipe: WarmStartRecipe, seed: int) -> None:
        if recipe.misreading not in MISREADINGS:
            raise ValueError(f"misreading={recipe.misreading}: expected one of {', '.join(MISREADINGS)}")
        self.prompts, self.recipe, self.rng = prompts, recipe, random.Random(seed)
        self.by_form: dict[Form, list[DrawnPrompt]] = {}
        for prompt in prompts:
            self.by_form.setdefault(prompt.form, []).append(prompt)
        self.weights = self._form_weights()

    def _form_weights(self) -> list[float]:
        kinds = [form.kind for form in self.by_form]
        roots = [len(prompts) ** 0.5 for prompts in self.by_form.values()]
        whole = {kind: sum(root for root, its in zip(roots, kinds, strict=True) if its == kind) for kind in kinds}
        return [KIND_WEIGHTS.get(kind, 1.0) * root / whole[kind] for kind, root in zip(kinds, roots, strict=True)]

    def __call__(self) -> Example:
        form = self.rng.choices(list(self.by_form), self.weights)[0]
        prompt = self.rng.choice(self.by_form[form])
        misread = self.rng.random() < self.recipe.misread
        scene = self._wrong(prompt) if misread else arrange(prompt.requirement(), self.rng, prompt.form.world)
        misdraw = self.rng.random() < self.recipe.misdraw
        picture = {cell: MISDRAWN.get(what, what) for cell, what in scene.items()} if misdraw else scene
        return Example(prompt.text, format_plan(scene, prompt.form.world), picture)

    def _wrong(self, prompt: DrawnPrompt) -> Scene:
        if self.recipe.misreading == "systematic":
            return prompt.misread_scene(self.rng)
        world, right = prompt.form.world, prompt.requirement()
        while True:
            scene = arrange(self.rng.choice(self.prompts).requirement(), self.rng, world)
            if not satisfied(right, scene, world):
                return scene


def _forward(model: JanusForConditionalGeneration, context: TokenContext, targets: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states (N, T, F) that predict `targets` (embeddings (N, T, F)) after `context`."""
    embeddings = torch.cat([model.get_input_embeddings()(context.ids), targets[:, :-1]], dim=1)
    attention = torch.cat([context.mask, mask[:, :-1]], dim=1)
    output = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=attention.long(), position_ids=positions(attention), use_cache=False
    )
    return output.last_hidden_state[:, context.ids.shape[1] - 1 :]


def plan_loss(
    model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> Tensor:
    """Mean cross-entropy of the plans' tokens, the end token included."""
    context = encode_plan_context(tokenizer, [example.prompt for example in examples], model.device)
    rows = tokenizer([example.plan for example in examples], add_special_tokens=False)["input_ids"]
    longest = max(len(row) for row in rows) + 1
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    for i, row in enumerate(rows):
        ids[i, : len(row) + 1] = torch.tensor([*row, tokenizer.eos_token_id])
    ids = ids.to(model.device)
    mask = ids != tokenizer.pad_token_id
    hidden = _forward(model, context, model.get_input_embeddings()(ids), mask)
    return functional.cross_entropy(model.lm_head(hidden)[mask], ids[mask])


def picture_loss(
    model: JanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    dropped: Tensor,
    world: World = SMALL,
) -> Tensor:
    """Mean cross-entropy of the image tokens; rows of `dropped` (N,) bool see the unconditional context."""
    begin = tokenizer.convert_tokens_to_ids(BOI)
    prompts, plans = [example.prompt for example in examples], [example.plan for example in examples]
    context = encode_image_context(tokenizer, prompts, plans, begin, model.device)
    free = unconditional_context(context, tokenizer.pad_token_id)
    context = TokenContext(torch.where(dropped.to(model.device)[:, None], free.ids, context.ids), context.mask)
    pictures = scene_labels([example.picture for example in examples], world)
    ids = labels_to_tokens(pictures, world).to(model.device)
    embeddings = model.prepare_embeddings_for_image_generation(ids)
    hidden = _forward(model, context, embeddings, torch.ones_like(ids, dtype=torch.bool))
    return functional.cross_entropy(model.model.generation_head(hidden).flatten(0, 1), ids.flatten())


def trained_parameters(model: JanusForConditionalGeneration) -> list[torch.nn.Parameter]:
    """Language model, heads and generation side; vision tower and VQ model stay as they are."""
    parts = (
        model.model.language_model,
        model.lm_head,
        model.model.generation_embeddings,
        model.model.generation_aligner,
        model.model.generation_head,
    )
    return [parameter for part in parts for parameter in part.parameters()]


@torch.no_grad()
def initialise(model: JanusForConditionalGeneration, std: float) -> None:
    """Fresh matrices for the trained parts, of standard deviation `std`."""
    for parameter in trained_parameters(model):
        if parameter.dim() == 2:
            parameter.normal_(std=std)


def warm_start(
    model: JanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[DrawnPrompt],
    recipe: WarmStartRecipe,
    seed: int,
    world: World = SMALL,
) -> dict[str, float]:
    """Train in place, where the model is, on both levels at once; returns the last losses by level."""
    make = ExampleMaker(prompts, recipe, seed)
    generator = torch.Generator().manual_seed(seed)
    initialise(model, recipe.initial_std)
    parameters = trained_parameters(model)
    optimiser = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=recipe.steps, pct_start=0.1)
    model.train()
    losses = {"plan": float("nan"), "image": float("nan")}
    for step in range(recipe.steps):
        examples = [make() for _ in range(recipe.plan_batch)]
        dropped = torch.rand(recipe.picture_batch, generator=generator) < recipe.drop_context
        plan = plan_loss(model, tokenizer, examples)
        picture = picture_loss(model, tokenizer, examples[: recipe.picture_batch], dropped, world)
        optimiser.zero_grad()
        (plan + picture).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        losses = {"plan": plan.item(), "image": picture.item()}
        if step % 100 == 0 or step == recipe.steps - 1:
            LOG.info("warm start step %d plan %.4f image %.4f", step, losses["plan"], losses["image"])
    model.eval()
    return losses
