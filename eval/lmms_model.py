"""``lmms-eval --model vtskip --model_args pretrained=...,method=...``: any supported model, any method, its benchmarks.

Written against lmms-eval 0.7 (chat models: ``is_simple = False``). What was skipped stands in the results as ``flops_ratio``,
``kv_ratio`` and ``kept_vision`` beside the throughput.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from vtskip.eval.answerer import load_answerer
from vtskip.eval.chat import Answerer, Decoding
from vtskip.eval.shard import Shard

DECODING = ("max_new_tokens", "num_beams", "temperature", "top_p", "stream_fps")


class Vtskip(lmms):
    """A chat model of lmms-eval.

    Args:
        pretrained, method, device, dtype, max_frames, threshold: as ``vtskip.eval.answerer.load_answerer``; ``method`` is a
            name or a YAML file. batch_size: requests answered at once.
        attn_implementation, device_map, revision: for ``from_pretrained`` of a stock model.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_frames: int = 32,
        threshold: float = 0.725,
        attn_implementation: str | None = None,
        device_map: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        shard = Shard.of_environment()
        if shard.world > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=device == "cpu")
            self._rank, self._world_size = shard.rank, shard.world
        given = {"attn_implementation": attn_implementation, "device_map": device_map, "revision": revision}
        kwargs = {key: value for key, value in given.items() if value is not None}
        place = shard.device(device or "auto")
        self.answerer: Answerer | None = load_answerer(
            str(pretrained), method, place, dtype, int(max_frames), float(threshold), **kwargs
        )
        self._device = self.answerer.device
        self.batch_size = max(1, int(batch_size)) if str(batch_size).isdigit() else 1

    @property
    def device(self) -> Any:
        return self._device

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answers in the order of ``requests``: ``(context, doc_to_messages, generation, doc, task, split)`` each."""
        from tqdm import tqdm

        assert self.answerer is not None
        self.answerer.handle.reset()
        results: list[Any] = []
        start = time.perf_counter()
        bar = tqdm(total=len(requests), desc="vtskip", disable=self._rank != 0)
        for batch in batches(requests, self.batch_size):
            talks = [
                doc_to_messages(self.task_dict[task][split][doc]) for _, doc_to_messages, _, doc, task, split in batch
            ]
            settings = batch[0][2]
            for (context, *_), answer in zip(batch, self.answerer.answer(talks, decoding(settings))):
                text = cut(answer.text, settings.get("until"))
                self.cache_hook.add_partial("generate_until", (context, settings), text)
                results.append(GenerationResult(text=text, token_counts=TokenCounts(output_tokens=answer.tokens)))
            bar.update(len(batch))
        bar.close()
        self._log(time.perf_counter() - start, sum(r.token_counts.output_tokens for r in results))
        return results

    def _log(self, seconds: float, tokens: int) -> None:
        assert self.answerer is not None
        report = self.answerer.handle.report()
        kept = report.kept_vision
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=tokens,
            avg_speed=tokens / seconds if seconds else 0.0,
            additional_metrics={
                "flops_ratio": report.flops_ratio,
                "kv_ratio": report.kv_ratio,
                "kept_vision": sum(kept) / len(kept) if kept else 1.0,
            },
        )

    def clean(self) -> None:
        """Lets the model go."""
        self.answerer = None
        super().clean()

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("vtskip answers by generating; choose a task with output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("vtskip answers in one round; choose a task with output_type generate_until")


def batches(requests: Sequence[Any], size: int) -> Iterator[list[tuple[Any, ...]]]:
    """Runs of neighbours that are decoded alike, at most ``size`` of them."""
    batch: list[tuple[Any, ...]] = []
    for request in requests:
        if batch and (len(batch) == size or request.args[2] != batch[0][2]):
            yield batch
            batch = []
        batch.append(request.args)
    if batch:
        yield batch


def decoding(settings: dict[str, Any]) -> Decoding:
    """Of a task's ``generation_kwargs``; ``do_sample: false`` is greedy whatever the temperature."""
    values = {key: settings[key] for key in DECODING if settings.get(key) is not None}
    if settings.get("do_sample") is False:
        values.pop("temperature", None)
    return Decoding(**values)


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """``text`` up to the first of the stop texts."""
    for stop in [until] if isinstance(until, str) else until or ():
        text = text.split(stop)[0] if stop else text
    return text.strip()
