"""The policy for every Janus checkpoint, tiny or 7B."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from src.config.schema import LoraConfig
from src.policies.base import EngineSettings
from src.policies.checkpointing import checkpoint_layers
from src.policies.contexts import encode_image_context, encode_plan_context, unconditional_context
from src.policies.dtensors import whole
from src.policies.engine.decoder import DecoderKeeper, JanusDecoder, features, head
from src.policies.engine.decoding_copy import DecodingCopy, decoding_copy, round_frozen
from src.policies.engine.snapshot import check_names, copy_of, lent, trained_parameters, write
from src.policies.lora import adapters_off, attach_lora, load_lora
from src.policies.sharded import ShardedWeights
from src.values import PLAN, LevelOutput, TokenContext, TokenLevel

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration, PreTrainedTokenizerBase


class JanusPolicy(nn.Module):
    """Protocol `Policy` over `JanusForConditionalGeneration`.

    Trained is the language model: its LoRA adapters, or (full fine-tuning) all of it with its embeddings and
    lm_head. The vision tower, aligner and the generation side stay frozen, as in the published run.

    Args:
        janus: the loaded model.
        tokenizer: its tokenizer, whose chat templates `plan` and `image` are used where it has them.
        lora: settings of fresh adapters; None trains the language model itself.
        adapter: a folder with a saved adapter to go on from, instead of fresh ones.
        merge_rollout: decode with the adapter merged into a fused copy; None: in float32 on a CPU. Else the trained
            tensors themselves are decoded with, at their addresses.
    """

    def __init__(
        self,
        janus: JanusForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        lora: LoraConfig | None = None,
        adapter: Path | None = None,
        merge_rollout: bool | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer: Any = tokenizer
        self.merge_rollout = merge_rollout
        self.engine = EngineSettings()
        self._keeper = DecoderKeeper()
        janus.requires_grad_(False)
        janus.eval()
        self._reference: tuple[JanusForConditionalGeneration, ...] = ()
        # The adapter a refreshed reference has; empty: the reference is the base.
        self._reference_adapter: dict[str, Tensor] = {}
        self._refreshed = False
        self._sharded: ShardedWeights | None = None
        # What decodes where the trained weights themselves do not: cut over ranks, or masters of another dtype.
        self._copy: DecodingCopy | None = None
        # This rank's part of the reference, where weights are cut over ranks (full fine-tuning).
        self._reference_parts: dict[str, Tensor] = {}
        if adapter is not None:
            self.network: Any = load_lora(janus, adapter)
        elif lora is not None:
            self.network = attach_lora(janus, lora)
        else:
            self.network = janus
            janus.model.language_model.requires_grad_(True)
            janus.lm_head.requires_grad_(True)
            # A tuple hides the frozen copy from parameters(), state_dict() and the wrappers of DDP / FSDP.
            self._reference = (decoding_copy(janus, trained_parameters(janus), None),)
        config = janus.config
        self.end_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id
        self.begin_of_image_id: int = begin_of_image_id(janus, tokenizer)
        self.image_tokens: int = config.vq_config.num_patches**2

    @property
    def janus(self) -> JanusForConditionalGeneration:
        """The transformers model inside, adapters included."""
        return plain_janus(self.network)

    @property
    def adapter(self) -> Any | None:
        """The PEFT model, or None in full fine-tuning; its copy where that decodes."""
        return self._decoding if hasattr(self.network, "peft_config") else None

    @property
    def _decoding(self) -> Any:
        """What decoders are made of: the trained network, or its copy."""
        return self.network if self._copy is None else self._copy.network

    @property
    def decoding_janus(self) -> JanusForConditionalGeneration:
        """The transformers model whose weights decode: the trained one, or its copy; adapters included."""
        return plain_janus(self._decoding)

    @property
    def device(self) -> torch.device:
        return self.janus.lm_head.weight.device

    def plan_context(self, prompts: Sequence[str]) -> TokenContext:
        return encode_plan_context(self.tokenizer, prompts, self.device)

    def image_context(self, prompts: Sequence[str], plans: Sequence[str]) -> TokenContext:
        return encode_image_context(self.tokenizer, prompts, plans, self.begin_of_image_id, self.device)

    def unconditional(self, context: TokenContext) -> TokenContext:
        return unconditional_context(context, self.pad_id)

    def read_plans(self, ids: Tensor, mask: Tensor) -> list[str]:
        rows = [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @torch.no_grad()
    def paint(self, ids: Tensor) -> Tensor:
        pixels = self.janus.decode_image_tokens(ids)  # (N, H, W, 3) in [-1, 1]
        return (pixels.float().permute(0, 3, 1, 2) * 0.5 + 0.5).clamp_(0.0, 1.0).contiguous()

    def forward(self, levels: Mapping[str, TokenLevel]) -> dict[str, LevelOutput]:
        return {name: self._train_level(name, level) for name, level in levels.items()}

    def _train_level(self, name: str, level: TokenLevel) -> LevelOutput:
        """One full forward over context and tokens; the token at place t is predicted at place t - 1."""
        janus, context, ids = self.janus, level.context, level.ids
        text = janus.get_input_embeddings()
        inputs = ids[:, :-1]
        if name == PLAN:
            # One look-up: each would make a gradient of the whole table.
            embedded = text(torch.cat([context.ids, inputs], dim=1))
        else:
            image = janus.prepare_embeddings_for_image_generation(inputs)
            embedded = torch.cat([text(context.ids), image], dim=1)
        mask = torch.cat([context.mask, torch.ones_like(inputs, dtype=torch.bool)], dim=1)
        hidden = janus.model.language_model(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=False,
        ).last_hidden_state
        read = hidden[:, context.ids.shape[1] - 1 :]
        return LevelOutput(features(janus, name, read), head(janus, name))

    def checkpoint_activations(self) -> None:
        checkpoint_layers(self.janus.model.language_model.layers)

    def decoder(self) -> JanusDecoder:
        """The weights as they are now; unmerged, one decoder that lives as long as the weights stay where they are."""
        return self._keeper.decoder(self.decoding_janus, self.engine, self.merge_rollout)

    def release_cache(self) -> None:
        """Give back what is kept from one rollout to the next; it is made anew when needed."""
        self._keeper.release()

    @contextmanager
    def reference(self) -> Iterator[JanusDecoder]:
        """LoRA: the same weights with the adapter left out, or as it was at the last refresh. Full fine-tuning: the
        frozen copy of the start, or of the last refresh.
        """
        if self._reference:
            with self._keeper.frozen(self._reference[0], self.engine, self.merge_rollout) as decoder:
                yield decoder
        elif self._sharded is not None and self._reference_parts:
            copied = self._sharded.copy.network
            with (
                self._sharded.lent(self._reference_parts),
                self._keeper.frozen(copied, self.engine, self.merge_rollout, lent=True) as decoder,
            ):
                yield decoder
        elif self._reference_adapter:
            with lent(self._decoding_weights(), self._reference_adapter):
                yield self.decoder()
        else:
            with self._keeper.frozen(self.decoding_janus, self.engine, self.merge_rollout) as decoder:
                yield decoder

    @contextmanager
    def reference_janus(self) -> Iterator[JanusForConditionalGeneration]:
        """The transformers model whose own forward is the reference's inside the block: what `reference` is held to."""
        if self._reference:
            yield self._reference[0]
        elif self._sharded is not None and self._reference_parts:
            with self._sharded.lent(self._reference_parts):
                yield self._sharded.copy.network
        elif self._reference_adapter:
            with lent(self._decoding_weights(), self._reference_adapter):
                yield self.decoding_janus
        else:
            with adapters_off(self._decoding):
                yield self.decoding_janus

    def shard(self, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
        """See `Shardable`. With LoRA the weights keep their dtypes, whatever `dtype` is: adapters are float32."""
        full = self.adapter is None
        self._reference = ()
        self._sharded = ShardedWeights(
            self, self.janus.model.language_model.layers, self.network, mesh, dtype if full else None, "network."
        )
        self._copy = self._sharded.copy
        if full:
            self._reference_parts = self._sharded.cut()

    def decode_in(self, dtype: torch.dtype) -> None:
        """See `MixedPrecision`. With LoRA the weights keep their dtypes, whatever `dtype` is: adapters are float32."""
        if self.adapter is not None:
            return
        round_frozen(self, dtype)
        for reference in self._reference:
            round_frozen(reference, dtype)
        self._copy = DecodingCopy(self.network, trained_parameters(self.network), dtype, "network.")
        # Lightning puts a checkpoint's weights in by itself.
        self.register_load_state_dict_post_hook(_follow)

    def refresh_rollout_weights(self) -> None:
        if self._copy is not None:
            self._copy.fill(trained_parameters(self))

    def refresh_reference(self) -> None:
        if self._sharded is not None and self._reference_parts:
            self._reference_parts, self._refreshed = self._sharded.cut(), True
        else:
            self._take_reference(self._decoding_weights())

    def reference_state(self) -> dict[str, Tensor]:
        if not self._refreshed:
            return {}
        state = self._frozen_counterparts() if self._reference else self._reference_parts or self._reference_adapter
        return {name: whole(value).cpu() for name, value in state.items()}

    def load_reference_state(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self._take_reference({name: value.to(self.device) for name, value in state.items()})

    def _take_reference(self, weights: Mapping[str, Tensor]) -> None:
        """Make whole `weights` the reference."""
        if self._reference:
            write(self._frozen_counterparts(), weights)
        elif self._sharded is not None and self._reference_parts:
            self._reference_parts = self._sharded.cut(weights)
        else:
            check_names(trained_parameters(self), weights)
            self._reference_adapter = copy_of(weights)
        self._refreshed = True

    def _decoding_weights(self) -> dict[str, Tensor]:
        """The whole trained weights as decoders read them, by name."""
        return dict(trained_parameters(self)) if self._copy is None else dict(self._copy.parameters)

    def _frozen_counterparts(self) -> dict[str, Tensor]:
        """The frozen copy's weights under the names the trained ones have here (full fine-tuning)."""
        frozen = dict(self._reference[0].named_parameters())
        return {name: frozen[name.removeprefix("network.")] for name in trained_parameters(self)}

    def _apply(self, fn: Any, recurse: bool = True) -> JanusPolicy:
        """Move the hidden networks along with the module (`to`, `cuda`, ...)."""
        for model in (*self._reference, *(() if self._copy is None else (self._copy.network,))):
            model._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _follow(policy: JanusPolicy, incompatible_keys: Any) -> None:
    policy.refresh_rollout_weights()


def plain_janus(network: Any) -> Any:
    """The transformers model inside of a PEFT model, or the model itself."""
    return network.base_model.model if hasattr(network, "peft_config") else network


def begin_of_image_id(janus: JanusForConditionalGeneration, tokenizer: Any) -> int:
    """The id of the begin-of-image token, from the generation config or the tokenizer."""
    settings = getattr(janus.generation_config, "generation_kwargs", None) or {}
    if "boi_token_id" in settings:
        return int(settings["boi_token_id"])
    return int(tokenizer.convert_tokens_to_ids(getattr(tokenizer, "boi_token", "<begin_of_image>")))
