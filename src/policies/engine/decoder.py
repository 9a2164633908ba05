"""Decoding with a Janus: both levels over one trunk, and what is kept between rollouts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from kernels import operations
from src.policies.base import EngineSettings
from src.policies.engine.cache import CacheMemory, DecodeState
from src.policies.engine.fused import Form, merges
from src.policies.engine.llama import LlamaTrunk
from src.policies.engine.token_operations import KernelTokenOperations, TokenOperations, TorchTokenOperations
from src.values import IMAGE, PLAN, LinearHead, TokenContext

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration


def features(janus: JanusForConditionalGeneration, level: str, hidden: Tensor) -> Tensor:
    """The input of the last linear of the level's head: hidden itself, or the image head's inner layer."""
    if level == PLAN:
        return hidden
    image_head = janus.model.generation_head
    return image_head.activation_fn(image_head.proj_out(hidden))


def head(janus: JanusForConditionalGeneration, level: str) -> LinearHead:
    """The last linear of the level's head: lm_head (no bias), or the image head's (with bias)."""
    layer = janus.lm_head if level == PLAN else janus.model.generation_head.vision_head
    return LinearHead(layer.weight, layer.bias)


class JanusDecoder:
    """A Janus for sampling and scoring (protocol `CapturableDecoder`); never builds a graph.

    Args:
        janus: the model whose weights decode.
        trunk: the decoding form of its language model.
        image_embeddings (K, H): the trunk's input for each image token.
        memory: the cache, shared with other decoders of the policy and used in turn.
        engine: the settings of all of this.
        lent: the weights are in the model only temporarily; a returned head outlives them.
    """

    def __init__(
        self,
        janus: JanusForConditionalGeneration,
        trunk: LlamaTrunk,
        image_embeddings: Tensor,
        memory: CacheMemory,
        engine: EngineSettings,
        lent: bool = False,
    ) -> None:
        self.engine = engine
        self._lent = lent
        self._heads: dict[str, LinearHead] = {}
        self.captured: dict[Hashable, Any] = {}
        self._janus = janus
        self._trunk = trunk
        self._image_embeddings = image_embeddings
        self._memory = memory
        self._moves = memory.moves

    @torch.no_grad()
    def start(self, level: str, context: TokenContext, steps: int) -> tuple[DecodeState, Tensor]:
        prefix = self._trunk.read(context.ids, context.mask)
        state = self._trunk.start(self._memory, level, prefix, steps)
        if self._moves != self._memory.moves:
            self.captured.clear()
            self._moves = self._memory.moves
        return state, features(self._janus, level, prefix.hidden)[prefix.inverse]

    @torch.no_grad()
    def advance(self, state: DecodeState, ids: Tensor) -> Tensor:
        """See `Decoder`. Raises RuntimeError for a state whose cache another `start` has taken over."""
        if state.turn != self._memory.turn:
            raise RuntimeError(
                "this decode has ended: a later start() took its cache; finish one decode before the next"
            )
        return features(self._janus, state.level, self._trunk.step(self._embed(state.level, ids), state))

    def finish(self, state: DecodeState) -> None:
        if not self.engine.reuse_cache:
            self.captured.clear()
            self._memory.release()

    def moving(self, state: DecodeState) -> Sequence[Tensor]:
        return (state.length,)

    def rows_that_fit(self, level: str, places: int) -> int | None:
        return self._memory.rows_that_fit(level, self._trunk.cache_shape, places)

    @torch.no_grad()
    def evaluate(self, level: str, context: TokenContext, ids: Tensor) -> Tensor:
        prefix = self._trunk.read(context.ids, context.mask)
        hidden = prefix.hidden[prefix.inverse][:, None]
        if ids.shape[1] > 1:
            hidden = torch.cat([hidden, self._trunk.evaluate(prefix, self._embed(level, ids[:, :-1]))], dim=1)
        return features(self._janus, level, hidden)

    def head(self, level: str) -> LinearHead:
        if not self._lent:
            return head(self._janus, level)
        if level not in self._heads:
            now = head(self._janus, level)
            bias = None if now.bias is None else now.bias.detach().clone()
            self._heads[level] = LinearHead(now.weight.detach().clone(), bias)
        return self._heads[level]

    def _embed(self, level: str, ids: Tensor) -> Tensor:
        return embedding(ids, self._image_embeddings if level == IMAGE else self._trunk.embedding)


class DecoderKeeper:
    """What a policy keeps between rollouts: the cache, the decoder of its weights, the image tokens' embeddings.

    All of it can be rebuilt, so copies of a policy start without it and none of it is saved.
    """

    def __init__(self) -> None:
        self.memory = CacheMemory()
        self._decoders: dict[Hashable, JanusDecoder] = {}
        self._placement: Hashable = None
        self._image_embeddings: dict[Hashable, Tensor] = {}

    def __deepcopy__(self, memo: object) -> DecoderKeeper:
        return DecoderKeeper()

    def __reduce__(self) -> tuple[type[DecoderKeeper], tuple[()]]:
        return DecoderKeeper, ()

    def release(self) -> None:
        """Free the cache's memory and the captures on it."""
        self.memory.release()
        self._drop_decoders()

    def decoder(self, janus: Any, engine: EngineSettings, merge: bool | None) -> JanusDecoder:
        """The decoder of the weights as they are, adapter included.

        In place it is the same object for the same settings until the weights move; merged it is a new one.
        """
        form = form_of(janus, engine, merge)
        if form == "merged":
            return self._made(janus, engine, form, adapter=True)
        if self._placement != placement(janus):
            self._drop_decoders()
        if (engine, form) not in self._decoders:
            made = self._made(janus, engine, form, adapter=True)
            if self._placement != (now := placement(janus)):
                # Weights of a group were put into one storage: what reads them elsewhere is void.
                self._drop_decoders()
                self._placement = now
            self._decoders[engine, form] = made
        return self._decoders[engine, form]

    def _drop_decoders(self) -> None:
        """Forget all decoders; the memory of what they captured is free at once, not when cycles are looked for."""
        for decoder in self._decoders.values():
            decoder.captured.clear()
        self._decoders.clear()

    @contextmanager
    def frozen(
        self, janus: Any, engine: EngineSettings, merge: bool | None, lent: bool = False
    ) -> Iterator[JanusDecoder]:
        """A decoder of the weights without the adapter; `lent`: the weights are in the model only temporarily.

        Its captures end with the ``with`` block.
        """
        made = self._made(janus, engine, form_of(janus, engine, merge), adapter=False, lent=lent)
        try:
            yield made
        finally:
            made.captured.clear()

    def _made(self, janus: Any, engine: EngineSettings, form: Form, adapter: bool, lent: bool = False) -> JanusDecoder:
        trunk = LlamaTrunk(
            janus.model.language_model,
            adapter,
            form,
            token_operations(janus, engine),
            shared_prefix=engine.shared_prefix,
            sliced=engine.filled_attention and not engine.captures(janus.lm_head.weight.device),
        )
        memory = self.memory if engine.reuse_cache else CacheMemory()
        return JanusDecoder(janus, trunk, self._embeddings_of(janus), memory, engine, lent)

    @torch.no_grad()
    def _embeddings_of(self, janus: Any) -> Tensor:
        """(K, H): one look-up per token instead of the aligner's two linears, rebuilt if their weights changed."""
        made_of = _generation_side(janus)
        if made_of not in self._image_embeddings:
            table = janus.model.generation_embeddings
            codes = torch.arange(table.num_embeddings, device=table.weight.device)
            self._image_embeddings = {made_of: janus.prepare_embeddings_for_image_generation(codes)}
        return self._image_embeddings[made_of]


def form_of(janus: Any, engine: EngineSettings, merge: bool | None) -> Form:
    """How the weights are held; see `merges`."""
    weight = janus.lm_head.weight
    if merges(weight.dtype, weight.device, merge):
        return "merged"
    return "in_place" if engine.fused_projections else "separate"


def token_operations(janus: Any, engine: EngineSettings) -> TokenOperations:
    """What a step is made of between its products: the kernels' operations where they are Triton's, else torch's."""
    weight = janus.lm_head.weight
    chosen = operations(engine.kernels if engine.fused_step else "torch", weight.device)
    if chosen.name == "torch" or weight.dtype == torch.float64:
        return TorchTokenOperations()
    silu = janus.config.text_config.hidden_act in ("silu", "swish")
    return KernelTokenOperations(chosen.decoding, silu, engine.filled_attention)


def placement(janus: Any) -> Hashable:
    """Where the decoding weights are and which adapters are on: while this is equal, a decoder stays valid."""
    trunk: Any = janus.model.language_model
    addresses = tuple(_addresses((trunk, janus.lm_head, janus.model.generation_head)))
    return (addresses, tuple(_adapter_states(trunk)), _generation_side(janus))


def _generation_side(janus: Any) -> Hashable:
    """Where the weights behind the image tokens' embeddings are, and how often they were written."""
    return tuple(
        (parameter.data_ptr(), parameter.dtype, parameter._version)
        for part in (janus.model.generation_embeddings, janus.model.generation_aligner)
        for parameter in part.parameters()
    )


def _addresses(parts: Sequence[nn.Module]) -> Iterator[Hashable]:
    for part in parts:
        for parameter in part.parameters():
            yield (parameter.data_ptr(), parameter.dtype, parameter.device)


def _adapter_states(model: Any) -> Iterator[Hashable]:
    for module in model.modules():
        if hasattr(module, "lora_A"):
            yield (module.disable_adapters, module.merged, tuple(module.active_adapters))
