"""A streaming video model: an open_clip tower, a two-layer connector and any Hugging Face causal language model."""

from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from vtskip.errors import ModelError
from vtskip.models.labelled import IGNORED, only_rows
from vtskip.models.sharding import partitioned
from vtskip.models.stream_loss import stream_loss
from vtskip.models.vision_tower import VisionTower, load_pretrained, normalisation, resolve

METHOD_KEY = ".vtskip."  # parameters of an attached method; they are saved by `vtskip.saving`, not with the model


class StreamingLlavaConfig(PreTrainedConfig):
    """Configuration of ``StreamingLlava``.

    Args:
        vision: name of an open_clip model, or a dict of open_clip ``vision_cfg`` keys (with ``embed_dim``, ``quick_gelu``).
        vision_pretrained: published tag or local file; read by ``load_vision``, never by ``from_pretrained``.
        image_size: side of a frame in pixels; None is the tower's own.
        image_mean, image_std: per channel, in [0, 1]; None is what the tower was trained with.
        cls_token: a frame starts with the tower's summary token.
        pool: [h, w] of the pooled patch grid behind it, row by row; None leaves it out.
        fps: frames per second the model is trained for.
        text_config: configuration (or its dict) of any causal language model.
        frame_id, interval_id, close_id, eos_id, bos_id: see ``vtskip.template``.
        system_prompt: what a session starts with.
        instruction: what a session asks for after its first frame.
        stream_loss_weight: weight of the speak-or-stay-silent positions in the loss.
    """

    model_type = "streaming_llava"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        vision: str | dict[str, Any] = "ViT-B-32",
        vision_pretrained: str | None = None,
        image_size: int | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        cls_token: bool = True,
        pool: list[int] | None = None,
        fps: float = 2.0,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        frame_id: int = 0,
        interval_id: int | None = 1,
        close_id: int = 2,
        eos_id: int = 3,
        bos_id: int | None = None,
        system_prompt: str = "",
        instruction: str | None = None,
        stream_loss_weight: float = 1.0,
        **kwargs: Any,
    ):
        if pool is not None and (len(pool) != 2 or min(pool) < 1):
            raise ModelError(f"pool {pool}: accepted are two sizes [h, w] of at least 1, or null")
        if not cls_token and pool is None:
            raise ModelError("cls_token false and pool null: a frame needs at least one token")
        self.vision, self.vision_pretrained = vision, vision_pretrained
        cfg, _, _ = resolve(vision, image_size)
        self.image_size = cfg.get("image_size", 224)
        mean, std = normalisation(vision, vision_pretrained)
        self.image_mean, self.image_std = image_mean or mean, image_std or std
        self.cls_token, self.pool = cls_token, pool
        self.fps = fps
        self.frame_id, self.interval_id, self.close_id = frame_id, interval_id, close_id
        self.eos_id, self.bos_id = eos_id, bos_id
        self.system_prompt, self.instruction = system_prompt, instruction
        self.stream_loss_weight = stream_loss_weight
        if isinstance(text_config, Mapping):
            text_config = AutoConfig.for_model(**text_config)
        text_config = deepcopy(text_config)  # transformers sets attention options on the parts of a configuration
        self.text_config = text_config if text_config is not None else AutoConfig.for_model("llama")
        kwargs["tie_word_embeddings"] = getattr(self.text_config, "tie_word_embeddings", False)
        kwargs |= {"eos_token_id": eos_id, "bos_token_id": bos_id, "pad_token_id": kwargs.get("pad_token_id", eos_id)}
        for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
            setattr(self, key, kwargs.pop(key))
        super().__init__(**kwargs)

    @property
    def frame_tokens(self) -> int:
        """Placeholders, and rows in the language model, per frame."""
        return int(self.cls_token) + (self.pool[0] * self.pool[1] if self.pool else 0)


class Connector(nn.Sequential):
    """Linear, GELU, Linear with biases: vision width to the language model's hidden size."""

    def __init__(self, vision_dim: int, hidden: int):
        super().__init__(nn.Linear(vision_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden))


@dataclass
class StreamOutput(CausalLMOutputWithPast):
    """``loss_parts``: what the loss is made of, see ``vtskip.models.stream_loss``."""

    loss_parts: Tensor | None = None


class StreamingLlava(PreTrainedModel, GenerationMixin):
    """Reads frames and text in one causal sequence. ``attach`` works on it as on any supported multimodal model."""

    config_class = StreamingLlavaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_missing = [r"\.vtskip\."]
    _skip_keys_device_placement = ["past_key_values"]
    picks_labelled_rows = True  # in training; labels lie at the rows that predict them

    def __init__(self, config: StreamingLlavaConfig, language_model: PreTrainedModel | None = None):
        """language_model: taken as it is, with its weights; by default one of ``config.text_config`` with random weights."""
        super().__init__(config)
        self.vision_tower = VisionTower(config.vision, config.image_size, config.cls_token, config.vision_pretrained)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        text_config = cast(PreTrainedConfig, config.text_config).get_text_config()
        self.connector = Connector(self.vision_tower.width, text_config.hidden_size)
        self._no_split_modules = self.language_model._no_split_modules
        if not next(self.language_model.parameters()).is_meta:  # it has its weights: ours to initialise is the rest
            for module in self.language_model.modules():
                module._is_hf_initialized = True
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own initialisation for tower and connector; the language model initialises itself."""
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
        for name, parameter in module.named_parameters(recurse=False):
            if "embed" in name and not getattr(parameter, "_is_hf_initialized", False):
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)

    def load_vision(self) -> None:
        """Fill the tower from ``config.vision_pretrained``; nothing to do where it is None."""
        if self.config.vision_pretrained:
            load_pretrained(self.vision_tower, self.config.vision, self.config.vision_pretrained)

    # -- what transformers asks for --------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self, **kwargs: Any) -> nn.Module:
        return self.language_model.get_decoder()

    def set_decoder(self, decoder: nn.Module) -> None:
        self.language_model.set_decoder(decoder)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        self.vision_tower.set_grad_checkpointing(enable)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Without the parameters of an attached method: those are written by ``vtskip.save_pretrained``."""
        state = kwargs.pop("state_dict", None) or self.state_dict()
        kwargs["state_dict"] = {k: v for k, v in state.items() if METHOD_KEY not in k}
        super().save_pretrained(*args, **kwargs)

    # -- frames ----------------------------------------------------------------------------------------------------

    def encode_frames(self, frames: Tensor) -> Tensor:
        """frames: uint8 [N, H, W, 3] or [N, 3, H, W], any size -> vision features [N, F, vision_dim]. Normalises inside."""
        config, tower = self.config, self.vision_tower
        if frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
            raise ModelError(f"frames {list(frames.shape)}: accepted are [N, H, W, 3] and [N, 3, H, W]")
        weight = next(p for p in self.connector.parameters())
        pixels = (frames.permute(0, 3, 1, 2) if frames.shape[3] == 3 else frames).to(weight.device, weight.dtype) / 255
        if pixels.shape[2:] != (tower.image_size, tower.image_size) and len(pixels):
            pixels = F.interpolate(pixels, size=(tower.image_size,) * 2, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (pixels.new_tensor(v).view(1, 3, 1, 1) for v in (config.image_mean, config.image_std))
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in tower.parameters())):
            summary, grid = tower((pixels - mean) / std)
        parts = [] if summary is None else [summary.unsqueeze(1)]
        if config.pool is not None:
            parts.append(F.adaptive_avg_pool2d(grid, tuple(config.pool)).flatten(2).transpose(1, 2))
        return torch.cat(parts, dim=1)

    def _features(self, frames: Tensor | None, features: Tensor | None) -> Tensor | None:
        if features is not None:
            return features
        if frames is not None and len(frames):
            return self.encode_frames(frames)
        return None

    def embed(self, input_ids: Tensor, features: Tensor | None, first: bool = True) -> Tensor:
        """Token embeddings [B, S, D] of ``input_ids`` with connector outputs in the frames' places.

        features: [N, F, vision_dim], all frames of the batch in row-major order. first: nothing is cached yet.
        Raises ModelError where placeholders and frames do not match.

        In training a batch without frames runs tower and connector on a blank frame whose rows count zero: every process
        of a sharded run has to call every module, and in the same order, because ZeRO-1 and -2 reduce gradients in the
        order in which they arrive and would silently add those of different parameters. ZeRO-3 gathers weights whenever a
        module is called, so there it is done outside training too.
        """
        mask = input_ids == self.config.frame_id
        absent = features is None
        # A lone placeholder behind a cache is a token the model itself has generated, not a frame.
        if absent and (first or input_ids.shape[1] > 1) and bool(mask.any()):
            raise ModelError(f"input_ids hold {int(mask.sum())} frame placeholders, but no frames were given")
        if absent and (self.training or (first and partitioned(next(self.parameters())))):
            side = self.vision_tower.image_size
            features = self.encode_frames(input_ids.new_zeros(1, side, side, 3, dtype=torch.uint8))
        rows = None
        if features is not None:
            rows = self.connector(features.to(next(self.connector.parameters()).dtype)).flatten(0, 1)
        table = cast(nn.Embedding, self.get_input_embeddings())
        if absent or rows is None:
            embeds = table(input_ids.clamp(max=table.num_embeddings - 1))
            return embeds if rows is None else embeds + rows.sum().to(embeds.dtype) * 0
        if int(mask.sum()) != len(rows):
            raise ModelError(
                f"input_ids hold {int(mask.sum())} frame placeholders, but {len(rows) // self.config.frame_tokens} frames "
                f"of {self.config.frame_tokens} tokens give {len(rows)}"
            )
        embeds = table(input_ids.masked_fill(mask, 0))
        return embeds.masked_scatter(mask.unsqueeze(-1), rows.to(embeds.dtype))

    # -- forward and generation ------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        frames: Tensor | None = None,
        frame_features: Tensor | None = None,
        labels: Tensor | None = None,
        stream_loss_weight: float | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> StreamOutput:
        """One pass over [B, S] tokens.

        frames: uint8 [N, H, W, 3], the frames of the whole batch in row-major order; or frame_features [N, F, vision_dim].
        labels: [B, S], already shifted (``labels[p]`` is predicted at p), -100 = ignored. In training mode with labels
        only the labelled rows of each sample go through the head, and ``logits`` is None.
        num_items_in_batch: divides the loss instead of the number of labels in this batch (gradient accumulation).
        Raises ModelError where frames and placeholders do not match.
        """
        learned = None
        if labels is not None and self.training:
            learned = labels.ne(IGNORED).flatten().nonzero()[:, 0]  # read before any module runs
            learned = learned if len(learned) else learned.new_zeros(1)
            use_cache = bool(use_cache)  # nothing to continue after a training step
        if inputs_embeds is None:
            if input_ids is None:
                raise ModelError("forward needs input_ids or inputs_embeds")
            first = past_key_values is None or past_key_values.get_seq_length() == 0
            inputs_embeds = self.embed(input_ids, self._features(frames, frame_features), first)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        with nullcontext() if learned is None else only_rows(self.get_decoder(), learned):
            out = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep if learned is None else 0,
                **kwargs,
            )
        loss = parts = None
        if labels is not None:
            if input_ids is None:
                raise ModelError("a loss needs input_ids: the frame positions are read from them")
            ids = input_ids if learned is None else input_ids.flatten()[None, learned]
            targets = labels if learned is None else labels.flatten()[None, learned]
            weight = self.config.stream_loss_weight if stream_loss_weight is None else stream_loss_weight
            loss, parts = stream_loss(out.logits, targets, ids, self.config.frame_id, weight, num_items_in_batch)
        return StreamOutput(
            loss=loss,
            loss_parts=parts,
            logits=out.logits if learned is None else None,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Frames go in with the prompt only."""
        first = kwargs.get("is_first_iteration", False)
        vision = {k: kwargs.pop(k, None) for k in ("frames", "frame_features")}
        inputs = cast(Any, super()).prepare_inputs_for_generation(*args, **kwargs)
        return inputs | vision if first or not kwargs.get("use_cache", True) else inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> Any:
        """Beams and return sequences of a sample share its frames, encoded once."""
        features = self._features(kwargs.pop("frames", None), kwargs.pop("frame_features", None))
        if features is not None and expand_size > 1 and input_ids is not None:
            counts = (input_ids == self.config.frame_id).sum(1) // self.config.frame_tokens
            if int(counts.sum()) == len(features):  # else forward reports the mismatch
                parts = features.split(counts.tolist())
                features = torch.cat([part for part in parts for _ in range(expand_size)])
        expand = cast(Any, super())._expand_inputs_for_generation
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | {"frame_features": features}


AutoConfig.register(StreamingLlavaConfig.model_type, StreamingLlavaConfig, exist_ok=True)
AutoModel.register(StreamingLlavaConfig, StreamingLlava, exist_ok=True)
