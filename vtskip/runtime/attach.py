"""Attach a method to a stock model, and take it off again without a trace."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from vtskip.errors import ConfigError, ModelError
from vtskip.models.cls_attention import KINDS, watch_cls
from vtskip.models.families import Family, decoder_of, family_of, shape_of, unwrap
from vtskip.models.labelled import IGNORED
from vtskip.models.layers import check_layers, parts_of
from vtskip.models.sharding import elsewhere
from vtskip.models.views import watch_views
from vtskip.plan import ANSWERS, MOVABLE, VIEWS, DecoderShape, LayerPlan, Planner, RowMap
from vtskip.runtime.answers import answer_hooks
from vtskip.runtime.asked import asked_hooks
from vtskip.runtime.carried import hands_on
from vtskip.runtime.checkpoints import hand_back, take_over
from vtskip.runtime.execution import Execution
from vtskip.runtime.forwards import found, is_in, put_in, router_device, take_out
from vtskip.runtime.frozen_tail import join_runs
from vtskip.runtime.masks import backend
from vtskip.runtime.native import LayerRuntime, native
from vtskip.runtime.report import Report, make_report
from vtskip.runtime.rows import Layout, reader_for
from vtskip.runtime.stats import StepState, count_logit_rows
from vtskip.runtime.unread import WholeLayer, unread_of

DATA_PARALLEL = (
    "nn.DataParallel runs copies of a model in threads, which would share the state of one forward; start one process per "
    "device (torchrun), or let the process see a single one (CUDA_VISIBLE_DEVICES)"
)


class MethodLike(Protocol):
    """What attaching asks of a method (see ``vtskip.methods``)."""

    @property
    def name(self) -> str: ...

    def planners(self, shape: DecoderShape) -> Sequence[Planner | None]: ...


def attach(
    model: nn.Module,
    method: MethodLike | dict[str, Any] | str | Path | Sequence[Any],
    bucket: int | None = None,
    lossless: bool = True,
) -> Handle:
    """Make a stock Hugging Face model skip layers by ``method``; weights, keys and class names stay as they are.

    Args:
        model: a supported model (``vtskip models``), bare or inside a PEFT wrapper.
        method: a method object, a dict (``{"name": "mod", "keep": 0.2}``), a name, the path of a YAML file, or a list of such.
        bucket: for ``torch.compile``: how many rows run is rounded up to multiples of this, with fillers that change no
            result, so that inputs with different numbers of images share their graphs. None: only the rows themselves.
        lossless: rows whose output nothing reads are not computed, by any method, ``dense`` included (``docs/lossless.md``):
            logits, losses, caches and gradients are the same. Not with a bucket.

    Returns:
        A handle: ``detach()`` restores the model bit for bit, ``report()`` says what ran; also a context manager.

    Raises:
        ConfigError: an unknown method or key. ModelError: a model or layer that is not supported, one inside a wrapper,
        or one that already has a method attached.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"a method is attached to a model, got {model!r:.60} ({type(model).__name__}); load it first")
    if isinstance(model, nn.DataParallel):
        raise ModelError(DATA_PARALLEL)
    if bucket is not None and bucket < 1:
        raise ConfigError(f"bucket: got {bucket}, accepted: a number of rows above 0")
    if not hasattr(method, "planners"):
        from importlib import import_module  # by name: the executor must not depend on the methods

        method = import_module("vtskip.methods").get_method(method)
    return Handle(model, cast(MethodLike, method), bucket, lossless)


def attached(model: nn.Module) -> Handle | None:
    """The handle of the method attached to ``model``, or None."""
    return unwrap(model).__dict__.get("_vtskip_handle")


class Handle:
    """An attached method. Use ``with attach(model, method) as handle`` to have it taken off at the end."""

    def __init__(self, model: nn.Module, method: MethodLike, bucket: int | None = None, lossless: bool = True):
        self.model = model = unwrap(model)
        before = attached(model)
        if before is not None:
            raise ModelError(f"{type(model).__name__} already has method {before.method.name!r}; detach it first")
        family = family_of(model)
        decoder, base = decoder_of(model)
        check_layers(decoder.layers)
        self.method: MethodLike = method
        self.shape = shape_of(decoder)
        planners: list[Planner | None] = list(method.planners(self.shape))
        self.state = StepState(every_step=any(p is not None and p.every_step for p in planners), bucket=bucket)
        self.state.chooses = any(getattr(p, "leaves", "none") != "none" for p in planners)
        self.state.reset(self.shape.layers)
        self._hooks: list[Any] = []
        self._layers: list[nn.Module] = []
        self._rotary = getattr(decoder, "rotary_emb", None)
        if any(p is not None and p.compact for p in planners) and not one_position_table(self._rotary):
            raise ModelError(
                f"{method.name}: compact positions need one table of 1-D rotary positions, which "
                f"{type(decoder).__name__} does not have; use the rows' original positions"
            )
        needs = frozenset[str]().union(*(p.needs for p in planners if p is not None))
        deepstack = 0 if family is None else family.deepstack_layers(model.config)
        if MOVABLE in needs and deepstack:
            raise ModelError(
                f"{method.name} moves rows inside their image, but {type(model).__name__} adds features to each row after "
                f"the first {deepstack} layers by its place: they would meet other rows; use skip_ffn"
            )
        if MOVABLE in needs and bucket is not None:
            raise ModelError(f"{method.name} moves rows by the exact sizes of the images; attach it without a bucket")
        self.lossless = self.state.packs = lossless and bucket is None
        self._unread = unread_of(planners)
        try:
            self._put_on(family, decoder, base, planners, needs)
            join_runs(decoder.layers, deepstack)
        except BaseException:  # Ctrl-C too, while the layers are checked
            self.detach()
            raise
        self._distinct = self._routers()
        model.__dict__["_vtskip_handle"] = self

    def _put_on(
        self,
        family: Family | None,
        decoder: nn.Module,
        base: nn.Module,
        planners: Sequence[Planner | None],
        needs: frozenset[str],
    ) -> None:
        """Patch the layers and register the hooks."""
        model = self.model
        if ANSWERS in needs:
            self._hooks += answer_hooks(model, self.state)  # before those that may pack the labels
        for kind in KINDS:
            if kind in needs:
                self._hooks += watch_cls(base, family, model.config, self.state, self.method.name, kind)
        if VIEWS in needs and family is not None and family.views is not None:
            self._hooks += watch_views(base, family)
        if self.lossless:  # padding is left out by every layer, and by some those rows that nothing reads later
            planners = [WholeLayer() if planner is None else planner for planner in planners]
            self._hooks += asked_hooks(model, decoder, self.state)
        for i, (layer, planner) in enumerate(zip(decoder.layers, planners)):
            if planner is not None:
                self._patch(i, layer, planner)
        reader = reader_for(base, self.state, family, model.config)
        self._hooks += [
            base.register_forward_pre_hook(reader.before, with_kwargs=True),
            base.register_forward_hook(reader.after, with_kwargs=True, always_call=True),
            base.register_forward_pre_hook(functools.partial(check_intact, self), with_kwargs=True),
        ]
        self._hooks.append(model.register_forward_hook(functools.partial(add_aux, self.state), with_kwargs=True))
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is not None:
            self._hooks.append(head.register_forward_pre_hook(functools.partial(count_logit_rows, self.state)))

    def _patch(self, index: int, layer: nn.Module, planner: Planner) -> None:
        module = cast(nn.Module, planner)
        weight = layer.input_layernorm.weight
        if any(True for _ in module.parameters()):  # routers stay in fp32 unless the model is wider
            module.to(device=router_device(layer), dtype=torch.promote_types(weight.dtype, torch.float32))
        module.train(layer.training)
        names = tuple(inspect.signature(type(layer).forward).parameters)[2:]
        module.runtime = LayerRuntime(index, self.state, found(layer), names, parts_of(layer), self._rotary)
        module.runtime.unread = self._unread[index]
        layer.vtskip = module
        self._layers.append(layer)
        self_check(layer, index)
        put_in(layer)

    def _routers(self) -> int:
        """How many different routers there are: layers may share one."""
        return len({id(router) for layer in self._layers for router in routers_of(layer.vtskip) or [None]})

    def detach(self) -> None:
        """Restore the model: forwards, hooks, state-dict keys. Calling it twice does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._restore_layers()
        self.model.__dict__.pop("_vtskip_handle", None)

    def _restore_layers(self) -> None:
        for layer in self._layers:
            take_out(layer, layer.vtskip.runtime.inner)
            hand_back(layer)
            del layer.vtskip
        self._layers = []

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()

    @contextmanager
    def rows(self, vision: Any, group: Any = None) -> Iterator[Handle]:
        """Say where the vision rows are, for models and inputs that cannot (text models, merged ``inputs_embeds``).

        Args:
            vision: ``[B, L]`` bool over the logical sequence; a forward reads the part it covers, rows beyond L are text.
            group: ``[B, L]`` non-decreasing ordinal of each vision row's frame or image; None makes every run one group.
        """
        mask = np.asarray(torch.as_tensor(vision).cpu(), bool)
        ids = None if group is None else np.asarray(torch.as_tensor(group).cpu())
        if mask.ndim != 2 or (ids is not None and ids.shape != mask.shape):
            raise ModelError(
                f"vision must be [B, L] and group alike, got {mask.shape} and {None if ids is None else ids.shape}"
            )
        before, self.state.override = self.state.override, Layout(mask, ids)
        try:
            yield self
        finally:
            self.state.override = before

    @contextmanager
    def loss_only(self) -> Iterator[Handle]:
        """Inside, a forward with labels is asked for its loss alone, as in training: its ``logits`` are None."""
        before, self.state.loss_only = self.state.loss_only, True
        try:
            yield self
        finally:
            self.state.loss_only = before

    @property
    def last_rows(self) -> RowMap | None:
        """Rows of the last forward that had vision rows."""
        return self.state.last_rows

    @property
    def last_plans(self) -> dict[int, LayerPlan]:
        """Layer -> plan of the last forward that had vision rows, of each layer that the method plans."""
        left = {layer.vtskip.runtime.index for layer in self._layers if isinstance(layer.vtskip, WholeLayer)}
        return {i: plan for i, plan in self.state.plans.items() if i not in left}

    def aux_loss(self) -> Tensor | None:
        """Auxiliary loss of the last forward, or None. In training it is already part of the ``loss`` a model returns."""
        return sum(self.state.aux[1:], self.state.aux[0]) if self.state.aux else None

    def reset(self) -> None:
        """Start the sums of ``report()`` anew."""
        self.state.reset(self.shape.layers)

    def report(self) -> Report:
        """What ran since attach or ``reset()``: rows per layer and group, KV bytes, FLOPs in both countings."""
        return make_report(self.method.name, self.shape, self.state)


def routers_of(planner: nn.Module) -> list[nn.Module]:
    """The modules named ``router`` of a planner, or of those that it joins."""
    return [module for name, module in planner.named_modules() if name.rpartition(".")[2] == "router"]


def add_aux(state: StepState, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the model: routers' auxiliary losses join the loss it returns in training.

    Where the loss is divided by the labels of several micro-batches (``num_items_in_batch``), these are weighed by this
    one's share of them: their sum over the micro-batches is a mean.
    """
    if not (module.training and state.aux) or getattr(output, "loss", None) is None:
        return
    aux = sum(loss.to(output.loss.device) for loss in state.aux)
    labels, items = kwargs.get("labels"), kwargs.get("num_items_in_batch")
    if labels is not None and items is not None:
        first = 0 if getattr(type(module), "picks_labelled_rows", False) else 1  # stock losses shift their labels
        aux = aux * labels[:, first:].ne(IGNORED).sum() / items
    output.loss = output.loss + aux


def one_position_table(rotary: nn.Module | None) -> bool:
    """True for plain rotary embeddings: one table for all layers, positions ``[B, S]`` (no M-RoPE)."""
    if rotary is None or len(inspect.signature(rotary.forward).parameters) != 2:
        return False
    return "mrope_section" not in (getattr(rotary.config, "rope_parameters", None) or {})


def check_intact(handle: Handle, module: nn.Module, args: Any, kwargs: Any) -> None:
    """Raises ModelError if a patched layer's forward or planner was exchanged since: it would run dense in silence."""
    if getattr(module, "_is_replica", False):
        raise ModelError(DATA_PARALLEL)
    for layer in handle._layers:
        if layer.vtskip.runtime.shared is not handle.state:
            raise ModelError(
                f"the planner of decoder layer {layer.vtskip.runtime.index} was copied after the method was attached; with "
                'PEFT name the router alone, modules_to_save=["vtskip.router"]'
            )
        if not is_in(layer):
            index = layer.vtskip.runtime.index
            raise ModelError(
                f"the forward of decoder layer {index} was replaced after the method was attached (a kernel patch or "
                "removed hook?); apply such patches first and attach last"
            )
        take_over(layer)
    if not torch.compiler.is_compiling():
        hands_on(handle._layers, handle.state.packs)
    if handle._routers() != handle._distinct:
        raise ModelError(
            "layers that shared one router no longer do (PEFT's modules_to_save copies it for the first of them alone); "
            "after get_peft_model set its requires_grad and save it with vtskip.save_pretrained, or give each layer its own"
        )


@torch.no_grad()
def self_check(layer: nn.Module, index: int) -> None:
    """Run the query seam on a few random rows against the layer's own forward. Raises ModelError if they differ.

    Layers whose weights are not here (meta device, sharded) are not run. The check is of the layer, not of its back end:
    where that takes no 4-D mask (flash, flex) it runs on eager attention.
    """
    weight, attn = layer.input_layernorm.weight, layer.self_attn
    config, kind = attn.config, backend(attn)
    if elsewhere(weight):
        return
    generator = torch.Generator().manual_seed(index)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(weight)

    n = 5
    x, embeddings = random(1, n, weight.numel()), (random(1, n, attn.head_dim), random(1, n, attn.head_dim))
    allowed = torch.ones(n, n, dtype=torch.bool, device=weight.device).tril()[None, None]
    if kind != "sdpa":
        mask = torch.zeros_like(allowed, dtype=weight.dtype).masked_fill(~allowed, torch.finfo(weight.dtype).min)
    else:
        mask = allowed
    kwargs = {"attention_mask": mask, "position_embeddings": embeddings}
    modes = {m: m.training for m in layer.modules()}
    layer.eval()
    try:
        if kind in ("flash", "flex"):
            attn.config = copy.copy(config)
            attn.config._attn_implementation = "eager"
        rows = RowMap.build(np.zeros((1, n), bool), device=weight.device)
        plan = LayerPlan.of(rows.everything)
        ours = Execution(layer, rows, plan, x, kwargs).query(x, None, None)
        theirs = native(layer, x, kwargs)
    finally:
        attn.config = config
        for module, mode in modes.items():
            module.training = mode
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
    limit = 100 * torch.finfo(weight.dtype).eps
    if not error <= limit:
        raise ModelError(
            f"decoder layer {index} ({type(layer).__name__}) does not compute what vtskip expects of it: taken apart it "
            f"differs from its own forward by {float(error):.2g} of its largest value (limit {limit:.2g})"
        )
