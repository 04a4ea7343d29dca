"""A tiny random checkpoint, two clips with Ego4D narrations, and damaged clips; made once per run."""

import io
import json
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from tests.tiny_stream import VISION

TEXTS = {"a": [(1.0, "#C C cuts the bread"), (2.5, "#C C opens the lid")], "b": [(2.0, "#C C looks around")]}
DIALOGUE = {"system": "You see it.", "instruction": "Narrate."}


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """folder/videos/{a,b}.mp4 of 4 s at 10 fps with narration.json, and missing, empty, truncated and audio-only files."""
    from vtskip.data.synthetic.encode import write_video

    root = tmp_path_factory.mktemp("clips")
    (root / "videos").mkdir()
    random = np.random.default_rng(0)
    for uid in TEXTS:
        still = random.integers(0, 255, (40, 1, 1, 3), np.uint8)
        write_video(root / "videos" / f"{uid}.mp4", np.broadcast_to(still, (40, 64, 64, 3)), 10)
    passes = {
        uid: {
            "narration_pass_1": {
                "narrations": [
                    {"timestamp_sec": t, "timestamp_frame": int(t * 30), "narration_text": text, "annotation_uid": uid}
                    for t, text in texts
                ]
            }
        }
        for uid, texts in TEXTS.items()
    }
    (root / "narration.json").write_text(json.dumps(passes))
    whole = (root / "videos" / "a.mp4").read_bytes()
    (root / "empty.mp4").write_bytes(b"")
    (root / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "text.mp4").write_text("not a video")
    audio_only(root / "audio.mp4")
    return root


def audio_only(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), 0
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A saved tiny StreamingLlava with tokenizer and untrained ``mod`` routers; it says something and is silent at times."""
    from vtskip import attach
    from vtskip.data.tokenizer import build_word_tokenizer
    from vtskip.models.streaming_llava import StreamingLlava, StreamingLlavaConfig
    from vtskip.saving import save_pretrained
    from vtskip.template import special_ids

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_word_tokenizer(
        [text[3:] for texts in TEXTS.values() for _, text in texts] + list(DIALOGUE.values())
    )
    ids = special_ids(tokenizer)
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    config = StreamingLlavaConfig(vision=VISION, pool=[2, 2], text_config=text, system_prompt="You see it.", **ids)
    model = StreamingLlava(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    attach(model, {"name": "mod", "keep": 0.4})
    model.save_pretrained(folder)
    save_pretrained(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def eval_config(checkpoint, clips):
    """Values of an EvalConfig on the tiny checkpoint and clips."""
    data = {"kind": "ego4d_narration", "annotations": str(clips / "narration.json"), "videos": str(clips / "videos")}
    return {"model": str(checkpoint), "data": data | DIALOGUE, "rows": ["blind", "dense", "random", "uniform"]}


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@dataclass(frozen=True)
class CliResult:
    code: int
    out: str
    err: str


def run_cli(*arguments: object, columns: int = 120) -> CliResult:
    """The program as a user starts it, in this process: importing torch anew for every case would take minutes."""
    from vtskip.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["vtskip", *map(str, arguments)]),
        patch.dict(os.environ, {"COLUMNS": str(columns)}),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = main() or 0
        except SystemExit as e:
            code = e.code or 0
    return CliResult(int(code), out.getvalue(), err.getvalue())
