"""Our tasks as tasks of lmms-eval, so that any of its models can be asked them: ``--include_path FOLDER``.

A task becomes four files: its YAML, its samples (JSONL), what scores them (JSON) and a module that binds both. Questions are
asked as they are. Narration is asked in lines of ``seconds: text`` that are scored like the replies of a rollout; a streaming
checkpoint plays the video instead. Teacher-forced streams need logits and exist in ``vtskip eval`` alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vtskip._files import write_atomic
from vtskip.config import parse
from vtskip.data import DataConfig
from vtskip.data.types import Sample
from vtskip.data.video import read_frames
from vtskip.errors import ConfigError
from vtskip.eval.chat import TIMED
from vtskip.eval.config import EvalConfig
from vtskip.eval.events import timed_lines
from vtskip.eval.prior import answer_of
from vtskip.eval.sets import TaskSet, due_replies, question, task_sets
from vtskip.eval.tasks import Scorer, Scores, Task, scorer_factory

PREFIX = "vtskip_"
MODULE = '''"""Made by `vtskip eval --lmms-eval`: what lmms-eval calls for this task."""

from vtskip.eval.lmms_tasks import Exported

exported = Exported(__file__)
messages, visuals, results, ratio = exported.messages, exported.visuals, exported.results, exported.ratio
question = exported.question
'''


def export(config: EvalConfig, folder: Path) -> list[str]:
    """Write every task of ``config`` that asks for text into ``folder``; returns their names there.

    Raises ConfigError where there is none.
    """
    names = []
    for part in task_sets(config):
        if part.task.evaluator != "stream":
            names.append(_export(part, config, folder))
    if not names:
        raise ConfigError(
            "tasks: none of them asks for text; lmms-eval has no task that is scored by logits of a stream"
        )
    return names


def _export(part: TaskSet, config: EvalConfig, folder: Path) -> str:
    name = PREFIX + part.task.task
    rows = [
        {"uid": s.uid, "cluster": part.cluster(s), "target": _target(part.task, s), "sample": json.dumps(_plain(s))}
        for s in part.samples
    ]
    facts = {
        "task": part.task.model_dump(mode="json"),
        "data": _absolute(part.data),
        "tolerances": list(config.tolerances),
        "include_path": [str(Path(p).resolve()) for p in config.include_path],
    }
    texts = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(facts, indent=1) + "\n",
        ".py": MODULE,
        ".yaml": _yaml(part.task, name, _metrics(part), {s.fps for s in part.samples}),
    }
    for suffix, text in texts.items():
        write_atomic(folder / f"{name}{suffix}", text.encode())
    return name


def _plain(sample: Sample) -> dict[str, Any]:
    values = asdict(sample) | {"video": str(sample.video.resolve())}
    return values | {"files": [[str(path.resolve()), count] for path, count in sample.files]}


def _absolute(data: DataConfig) -> dict[str, Any]:
    """The data section without places that depend on where one stands."""
    values = data.model_dump(mode="json", exclude_unset=True)
    if data.root is not None:
        values["root"] = str(data.root.resolve())
    else:
        values["root"] = str(Path().resolve())
    return values


def _target(task: Task, sample: Sample) -> str:
    if task.evaluator != "rollout":
        return answer_of(sample)
    return "\n".join(f"{frame / sample.fps:g}: {text}" for frame, text in due_replies(sample))


def _metrics(part: TaskSet) -> list[str]:
    """The metrics of the first sample, for an answer that says nothing."""
    sample = part.samples[0]
    empty = {"answers": [""], "target": answer_of(sample), "fps": sample.fps, "said": [], "due": due_replies(sample)}
    found = part.scorer(sample, empty)
    primary = part.task.primary.replace("/", "_")
    names = [f"{flavour}_{metric}" for flavour, metrics in found.items() for metric in metrics]
    return sorted(names, key=lambda name: (name != primary, name not in part.task.shown, name))


def _yaml(task: Task, name: str, metrics: Sequence[str], rates: set[float]) -> str:
    """lmms-eval's task file. Functions are those of the module beside it."""
    generation = {"max_new_tokens": task.generation.max_new_tokens, "num_beams": task.generation.num_beams}
    if task.evaluator == "rollout":
        if len(rates) != 1:
            raise ConfigError(f"task {task.task!r}: samples of different frame rates {sorted(rates)}; accepted: one")
        generation["max_new_tokens"] = max(512, task.generation.max_new_tokens)
    lines = [
        f"# {task.about}. Made by `vtskip eval --lmms-eval`.",
        f"task: {name}",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}",
        "test_split: test",
        "output_type: generate_until",
        f"doc_to_messages: !function {name}.messages",
        f"doc_to_visual: !function {name}.visuals",
        f"doc_to_text: !function {name}.question",
        "doc_to_target: target",
        f"process_results: !function {name}.results",
        f"generation_kwargs: {json.dumps(generation | {'temperature': 0, 'do_sample': False, 'until': []})}",
    ]
    if task.evaluator == "rollout":
        own = {"vtskip": {"stream_fps": rates.pop(), "max_new_tokens": task.generation.max_new_tokens}}
        lines.append(f"model_specific_generation_kwargs: {json.dumps(own)}")
    lines.append("metric_list:")
    for metric in metrics:
        better = task.higher_is_better if metric == task.primary.replace("/", "_") else _better(metric)
        entry = f"aggregation: !function {name}.ratio, higher_is_better: {str(better).lower()}"
        lines.append(f"- {{metric: '{metric}', {entry}}}")
    return "\n".join([*lines, f"metadata: {{version: {task.version}}}"]) + "\n"


def _better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return not any(part in metric for part in ("_ed", "aued", "miss_rate", "false_trigger"))


@dataclass(frozen=True)
class Exported:
    """The functions of one exported task; ``place`` is its module."""

    place: str

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads(Path(self.place).with_suffix(".json").read_text(encoding="utf-8"))

    @cached_property
    def task(self) -> Task:
        return parse(Task, self.facts["task"], self.place)

    @cached_property
    def scorer(self) -> Scorer:
        """Made from all samples: the closed set of a task is theirs."""
        lines = Path(self.place).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
        samples = [sample_of(json.loads(line)) for line in lines]
        data = parse(DataConfig, self.facts["data"], self.place)
        make = scorer_factory(self.task.scores, self.facts["include_path"])
        return make(self.task, data, samples, self.facts["tolerances"])

    def messages(self, doc: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A chat with the sample's frames in place: those of a stream as a video of images."""
        sample, out = sample_of(doc), list[dict[str, Any]]()
        pixels = iter([image for path, indices in sample.clips for image in read_frames(path, indices)])
        for turn in self._asked(sample):
            if turn["role"] == "stream":
                images = [_image(next(pixels)) for _ in range(turn["num_frames"])]
                part = {"type": "video", "url": images, "fps": sample.fps}
                role = "user"
            else:
                part, role = {"type": "text", "text": turn["content"]}, turn["role"]
            if out and out[-1]["role"] == role:
                out[-1]["content"].append(part)
            else:
                out.append({"role": role, "content": [part]})
        return out

    def _asked(self, sample: Sample) -> list[dict[str, Any]]:
        """Turns up to where the answer is due; of a narration the instruction, and all frames."""
        if self.task.evaluator != "rollout":
            return [turn for turn in question(sample) if turn["role"] != "stream" or turn["num_frames"]]
        opening = [turn for turn in sample.conversation[:3] if turn["role"] in ("system", "user")]
        asked = [turn | {"content": turn["content"] + TIMED * (turn["role"] == "user")} for turn in opening]
        return [*asked, {"role": "stream", "num_frames": len(sample.frames)}]

    def visuals(self, doc: Mapping[str, Any]) -> list[Any]:
        """All frames as images, for models without chats."""
        parts = [part for message in self.messages(doc) for part in message["content"]]
        return [image for part in parts if part["type"] == "video" for image in part["url"]]

    def question(self, doc: Mapping[str, Any]) -> str:
        """All text of the user, for models without chats."""
        turns = self._asked(sample_of(doc))
        return "\n".join(turn["content"] for turn in turns if turn["role"] == "user")

    def results(self, doc: Mapping[str, Any], answers: Sequence[str]) -> dict[str, list[float]]:
        """flavour_metric -> [value, weight]."""
        sample = sample_of(doc)
        raw: dict[str, Any] = {"answers": list(answers), "target": answer_of(sample)}
        if self.task.evaluator == "rollout":
            said = timed_lines(answers[0], sample.fps, len(sample.frames))
            raw = {"fps": sample.fps, "said": said, "due": due_replies(sample)}
        scores: Scores = self.scorer(sample, raw)
        return {f"{flavour}_{name}": list(count) for flavour, found in scores.items() for name, count in found.items()}

    @staticmethod
    def ratio(items: Sequence[Sequence[float]]) -> float:
        """Sum of values over sum of weights, as everywhere in ``vtskip eval``; NaN where nothing was to be measured."""
        weight = sum(w for _, w in items)
        return sum(v for v, _ in items) / weight if weight else float("nan")


def sample_of(doc: Mapping[str, Any]) -> Sample:
    values = json.loads(doc["sample"])
    files = tuple((Path(path), count) for path, count in values["files"])
    return Sample(**values | {"video": Path(values["video"]), "files": files})


def _image(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)
