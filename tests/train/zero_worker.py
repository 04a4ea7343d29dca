"""One process of the ZeRO test: trains, and writes down what its rank saw. Run by torchrun with a JSON file of settings."""

import json
import os
import sys
from pathlib import Path

import vtskip.data
from vtskip.config import parse
from vtskip.data.guarded import Guarded
from vtskip.data.types import Sample
from vtskip.train import TrainConfig, run, setup

settings = json.loads(Path(sys.argv[1]).read_text())
real_build = vtskip.data.build


def build(config, progress=True):
    """Two clips and two conversations without any frame, in turn."""
    clips = real_build(config, progress=False)[:2]
    talk = [{"role": "user", "content": "Narrate."}, {"role": "assistant", "content": "C sees it.", "learn": True}]
    talks = [Sample(f"talk{i}", clips[0].video, clips[0].fps, [], talk) for i in range(2)]
    return [sample for pair in zip(clips, talks) for sample in pair]


def noted(cls, training):
    """Have a data set write down which of its samples are asked for."""
    real = cls.__getitem__

    def __getitem__(self, index):
        seen.append((self.samples[index].uid, training))
        return real(self, index)

    cls.__getitem__ = __getitem__


seen: list[tuple[str, bool]] = []
vtskip.data.build = build
noted(Guarded, True)
noted(setup.Samples, False)
run(parse(TrainConfig, settings["config"], "worker"), resume=settings["resume"], progress=False)
rank = int(os.environ.get("RANK", "0"))
Path(settings["report"], f"seen{rank}.json").write_text(json.dumps(seen))
