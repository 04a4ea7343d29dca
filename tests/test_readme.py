"""The Python of README and docs runs as printed, on a tiny model and a real clip, and its promises about itself hold."""

import re
from pathlib import Path

import torch

from tests.fixtures_stream import checkpoint, clips
from tests.tiny import FAMILIES as TINY
from vtskip.cli.main import COMMANDS
from vtskip.methods import METHODS
from vtskip.models.families import FAMILIES

__all__ = ["checkpoint", "clips"]

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
ADDING = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
ON_A_MODEL, STREAMING, A_METHOD = re.findall(r"```python\n(.*?)```", TEXT + ADDING, re.DOTALL)


def test_a_few_lines_attach_a_method_to_a_stock_model(monkeypatch):
    import transformers

    tiny = TINY["llava-llama"]
    batch = tiny.batch(["long"], dtype=torch.float32)

    class Processor:
        @classmethod
        def from_pretrained(cls, name):
            return lambda images, text, return_tensors: batch

    monkeypatch.setattr(
        transformers.LlavaForConditionalGeneration, "from_pretrained", lambda name: tiny.model(torch.float32)
    )
    monkeypatch.setattr(transformers, "AutoProcessor", Processor)
    names = {"image": None}
    exec(ON_A_MODEL, names)
    assert names["output"].shape[1] > batch["input_ids"].shape[1]
    assert names["report"].kept_vision == [1.0, 0.5, 1.0, 0.5]
    assert names["report"].flops_ratio < 1
    assert names["report"].kv_ratio < 1


def test_streaming_in_python(checkpoint, clips, capsys):
    exec(STREAMING.replace("runs/demo", str(checkpoint)).replace("clip.mp4", str(clips / "videos/a.mp4")), {})
    own, dense = map(int, capsys.readouterr().out.splitlines()[-1].split())
    assert 0 < own < dense


def test_the_method_of_the_example_runs():
    import vtskip

    names: dict = {}
    exec(A_METHOD, names)
    tiny = TINY["llava-llama"]
    model, batch = tiny.model(), tiny.batch(["long", "short", "text"])
    with torch.no_grad(), vtskip.attach(model, names["Halve"](keep=0.25)) as handle:
        model(**batch)
        layers = handle.report().layers
    assert [layer.kept_ffn for layer in layers] == [1.0, 0.25, 0.25, 0.25]
    assert [layer.kept for layer in layers] == [1.0] * 4


def test_tables_name_methods_and_models_that_exist():
    cells = re.findall(
        r"^\| (`[a-z_0-9]+`(?:, `[a-z_0-9]+`)*) \|", TEXT.partition("## Methods")[2].partition("## ")[0], re.MULTILINE
    )
    methods = [name for cell in cells for name in re.findall(r"`([a-z_0-9]+)`", cell)]
    classes = re.findall(r"^\| `([A-Z]\w+)`(?: \(here\))? \|", TEXT, re.MULTILINE)
    assert set(methods) == set(METHODS)
    assert set(classes) == set(FAMILIES)


def test_commands_exist_and_the_text_is_short():
    assert set(re.findall(r"(?:^|`)vtskip ([a-z]+)", TEXT, re.MULTILINE)) <= set(COMMANDS)
    makefile = (Path(__file__).resolve().parent.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert len(TEXT.splitlines()) < 300


def test_every_measured_number_is_that_of_a_record():
    import json

    from vtskip.eval import sweep
    from vtskip.eval.bench import markdown

    measured = TEXT.partition("<!-- records:begin -->")[2].partition("<!-- records:end -->")[0]
    swept = (ROOT / "docs" / "loss-against-keep.md").read_text(encoding="utf-8")
    records = {p.name: json.loads(p.read_text()) for p in (ROOT / "eval" / "records").glob("*.json")}
    more = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    routing = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")
    assert set(re.findall(r"eval/records/(\w+\.json)", measured + swept + more + routing)) == set(records)
    for name in re.findall(r"eval/records/(\w+\.json)", more):
        assert markdown(records[name]) in more, name
    assert markdown(records["bench_cpu.json"]) in measured
    assert accuracy_table(records["demo.json"]) in measured
    assert sweep.markdown(records["sweep_smollm2.json"]) in swept
    tuned = records["sweep_smollm2.json"]["router_tuning"]
    assert f"from {tuned['loss_before']:.3f} to {tuned['loss_after']:.3f}" in swept


def accuracy_table(record: dict) -> str:
    """Rows of the demo's evaluation: accuracy beside cost."""
    lines = []
    for name, cost in record["cost"].items():
        strict = record["accuracy"][name]["strict"]
        numbers = [strict["correctness"], strict["ppl_token"], strict["time_diff"], strict["fluency"]]
        numbers += [cost["flops_ratio"], cost["kv_ratio"]]
        lines.append(f"| {name} | " + " | ".join(f"{n:.3f}" for n in numbers) + " |")
    return "\n".join(lines)
