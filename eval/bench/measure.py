"""Prefill, decode and training step of one setting, round by round over all subjects.

All runs of one round come right after one another, so that a machine that slows down slows all of them; ratios are taken
round by round. A second dense run per round is the control: the spread of its ratio to the first is the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from vtskip.cost import full_flops, head_flops, linear_flops
from vtskip.eval.bench.batch import WARM_UP, Batch, build_model, make_batch
from vtskip.eval.bench.clock import now, peak_bytes, rotated
from vtskip.eval.bench.config import BenchConfig, Setting
from vtskip.eval.bench.peers import why
from vtskip.eval.bench.subjects import DENSE, Subject, downsampled, fitted, subjects_of, worn
from vtskip.eval.journal import Journal
from vtskip.models.families import decoder_of, shape_of
from vtskip.runtime.cache import kv_bytes
from vtskip.runtime.stats import LayerCount

Tell = Callable[[str], None]
Times = dict[str, dict[str, list[float]]]  # phase -> subject -> one number per round
PEERS = ("masked", "flash", "mixture_of_depth")  # may not run here


class Bench:
    """One setting: its model, its batches, its subjects.

    Attributes:
        left_out: subject, or phase of all of them -> why it cannot run.
    """

    def __init__(self, config: BenchConfig, setting: Setting):
        self.config, self.setting, self.device = config, setting, config.device
        self.dtype = getattr(torch, config.dtype)
        self.model = build_model(setting, self.device, self.dtype, config.seed)
        self.shape = shape_of(decoder_of(self.model)[0])
        self.left_out: dict[str, str] = {}
        self._batches: dict[int | None, Batch] = {}
        self.subjects = [replace(s, spec=fitted(setting, s.spec)) for s in subjects_of(setting)]
        self.subjects = [self._sized(s) for s in self.subjects]

    def _sized(self, subject: Subject) -> Subject:
        """``downsample`` with the rows that cost what the first method costs."""
        if subject.frame_rows != 0:
            return subject
        first = next((s for s in self.subjects if s.run == "attached" and s.spec in self.setting.methods), None)
        ratio = 0.5 if first is None else self.flops(first)["prefill"][0]
        rows = downsampled(self.setting, self.shape, ratio)
        return replace(subject, name=f"downsample to {rows} rows per frame", frame_rows=rows)

    def batch(self, subject: Subject) -> Batch:
        key = subject.frame_rows
        if key not in self._batches:
            args = (self.setting, self.setting.hidden, self.device, self.dtype, self.config.seed, key)
            self._batches[key] = make_batch(*args)
        return self._batches[key]

    # ---------------------------------------------------------------- one run

    def prefill(self, batch: Batch) -> Any:
        inputs = batch.inputs(slice(0, batch.length))
        return self.model(inputs_embeds=batch.embeds, logits_to_keep=1, use_cache=True, **inputs).past_key_values

    @torch.no_grad()
    def prefill_and_decode(self, subject: Subject) -> dict[str, float]:
        self.model.eval()
        batch = self.batch(subject)
        with worn(subject, self.model, batch):
            start = now(self.device)
            cache = self.prefill(batch)
            out = {"prefill": now(self.device) - start}
            if not subject.decodes:
                return out
            out["kv"] = kv_bytes(cache)
            # Rows of text after the prefill, as a model that has left its vision inputs behind sees them. The first ones
            # pay for the memory that the prefill has left in disorder and are not counted.
            for i in range(WARM_UP + self.setting.decode_rows if self.setting.decode_rows else 0):
                if i == WARM_UP:
                    start = now(self.device)
                inputs = batch.inputs(slice(batch.length + i, batch.length + i + 1))
                self.model(input_ids=batch.tokens[:, i : i + 1], past_key_values=cache, **inputs)
            if self.setting.decode_rows:
                out["decode"] = (now(self.device) - start) / self.setting.decode_rows
        return out

    def train_step(self, batch: Batch) -> float:
        """Seconds of forward and backward; no optimizer."""
        embeds = batch.embeds
        if self.setting.trained == "inputs":
            embeds = embeds.detach().requires_grad_()
        inputs = batch.inputs(slice(0, batch.length))
        start = now(self.device)
        self.model(inputs_embeds=embeds, labels=batch.labels, use_cache=False, **inputs).loss.backward()
        seconds = now(self.device) - start
        self.model.zero_grad()
        return seconds

    def train(self, subject: Subject, checkpointed: bool, work: Callable[[Batch], Any] | None = None) -> Any:
        """``work`` (the timed step by default) in training mode, as the subject runs."""
        self.model.train()
        self.model.requires_grad_(self.setting.trained == "full")
        if checkpointed:
            _switch(self.model, "enable")({"use_reentrant": False})
        try:
            batch = self.batch(subject)
            with worn(subject, self.model, batch):
                return (work or self.train_step)(batch)
        finally:
            if checkpointed:
                _switch(self.model, "disable")()
            self.model.eval()

    def peak(self, subject: Subject, phase: str) -> int:
        """Peak bytes of a prefill or a training step beyond what was held before it."""
        if phase != "prefill":
            step = self.train_step
            return self.train(subject, phase != "train", lambda batch: peak_bytes(lambda: step(batch), self.device))
        batch = self.batch(subject)
        with worn(subject, self.model, batch), torch.no_grad():
            return peak_bytes(lambda: self.prefill(batch), self.device)

    # ---------------------------------------------------------------- modelled work

    def flops(self, subject: Subject) -> dict[str, tuple[float, float]]:
        """Phase -> (full, linear) FLOPs of the forward over those of the stock model on the whole batch.

        Of an execution by masks: what its method claims, not what is computed.
        """
        if subject.spec is None:
            ratio = tuple(a / b for a, b in zip(self.dense_flops(self.batch(subject)), self.dense_flops()))
            return {"prefill": ratio, "train": ratio}  # type: ignore[dict-item]
        phases = {"prefill": self._forward} | ({"train": self._train_forward} if self.setting.train_rounds else {})
        found = {}
        with worn(replace(subject, run="attached"), self.model, self.batch(subject)) as handle:
            for phase, forward in phases.items():
                handle.reset()
                forward(self.batch(subject))
                report = handle.report()
                found[phase] = (report.flops_ratio, report.flops_linear / report.flops_linear_dense)
        return found

    @torch.no_grad()
    def _forward(self, batch: Batch) -> None:
        self.model.eval()
        self.prefill(batch)

    @torch.enable_grad()
    def _train_forward(self, batch: Batch) -> None:
        """With gradients: some methods choose otherwise where they learn."""
        self.model.train()
        inputs = batch.inputs(slice(0, batch.length))
        self.model(inputs_embeds=batch.embeds, labels=batch.labels, use_cache=False, **inputs)
        self.model.eval()

    def dense_flops(self, batch: Batch | None = None) -> tuple[int, int]:
        """(full, linear) FLOPs of a stock prefill: padding is computed, the head on the last row of each sample."""
        batch = self.batch(Subject(DENSE)) if batch is None else batch
        count, n = LayerCount(), len(batch.embeds) * batch.length
        count.add(n, n * batch.length, 0)
        head = head_flops(self.shape, len(batch.embeds))
        layers = self.shape.layers
        return layers * full_flops(self.shape, count) + head, layers * linear_flops(self.shape, count) + head

    # ---------------------------------------------------------------- all rounds

    def measure(self, case: str, journal: Journal, tell: Tell) -> Times:
        c = self.setting
        phases: list[tuple[str, int, Callable[[Subject], dict[str, float]]]] = [
            ("prefill and decode", c.rounds, self.prefill_and_decode)
        ]
        if c.train_rounds:
            if c.checkpointing != "on":
                phases.append(("training step", c.train_rounds, lambda s: {"train": self.train(s, False)}))
            if c.checkpointing != "off":
                phases.append(("checkpointed step", c.train_rounds, lambda s: {"checkpointed": self.train(s, True)}))
        times: Times = {}
        for name, rounds, one in phases:
            title = f"{case}: {name}" if case else name
            try:
                found = self._rounds(title, rounds, one, journal, tell)
            except torch.OutOfMemoryError as e:  # of a GPU that is too small for a training step; the rest still counts
                if name == phases[0][0]:
                    raise
                self.left_out[name] = why(e)
                self.model.zero_grad()
                continue
            for values in found:
                _add(times, values)
        return times

    def _rounds(
        self, title: str, rounds: int, one: Callable[[Subject], dict[str, float]], journal: Journal, tell: Tell
    ) -> list[dict[str, dict[str, float]]]:
        """One dict (subject -> values) per round. A round that the journal holds is not run again, none is ever split."""
        found, warm = [], False
        for i in range(1, rounds + 1):
            key = ("round", title, str(i))
            line = journal.done.get(key)
            if line is None:
                if not warm:
                    tell(f"{title}, warm-up")
                    self._round(0, one)
                    warm = True
                tell(f"{title}, round {i} of {rounds}")
                line = dict(zip(("row", "task", "uid"), key)) | {"values": self._round(i, one)}
                line["left_out"] = dict(self.left_out)
                journal.add([line])
            self.left_out |= line["left_out"]
            found.append(line["values"])
        return found

    def _round(self, i: int, one: Callable[[Subject], dict[str, float]]) -> dict[str, dict[str, float]]:
        out = {}
        for subject in rotated([s for s in self.subjects if s.name not in self.left_out], i):
            try:
                out[subject.name] = one(subject)
            except Exception as e:  # whatever a stranger's code raises here: its row goes, with the reason
                if subject.run not in PEERS:
                    raise
                self.left_out[subject.name] = why(e)
        return out


def _add(times: Times, values: dict[str, dict[str, float]]) -> None:
    """One round's numbers behind those of the rounds before."""
    for subject, phases in values.items():
        for phase, value in phases.items():
            times.setdefault(phase, {}).setdefault(subject, []).append(value)


def _switch(model: Any, what: str) -> Callable[..., None]:
    """Checkpointing has another name from transformers 5.23 on."""
    return getattr(model, f"activation_checkpointing_{what}", None) or getattr(model, f"gradient_checkpointing_{what}")
