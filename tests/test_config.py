"""vtskip.config: what a YAML file may say, how overrides change it, and how faults are reported."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, field_validator

from vtskip.config import StrictModel, apply_overrides, load_config, parse, read_yaml
from vtskip.errors import ConfigError, DataError

Keep = Annotated[float, Field(gt=0.0, le=1.0)]


class Every(StrictModel):
    kind: Literal["every"] = "every"
    step: int = Field(2, ge=1)


class Picked(StrictModel):
    kind: Literal["list"] = "list"
    layers: list[int]


class Routing(StrictModel):
    name: Literal["routing"] = "routing"
    keep: Keep = 0.2
    combine: Literal["output", "delta"] = "output"
    schedule: Every | Picked = Field(Every(), discriminator="kind")


class Frozen(StrictModel):
    name: Literal["frozen"] = "frozen"
    layers: list[int] = []


class Stage(StrictModel):
    steps: int = 10
    keep: Keep | None = None
    title: str = "a"


class Run(StrictModel):
    out: Path
    note: str | None = None
    lr: float = 1e-3
    fps: float | int = 2
    method: Annotated[Routing | Frozen, Field(discriminator="name")] = Routing(keep=0.5)
    stages: list[Stage] = []
    first: Stage = Stage(steps=77)
    tables: dict[str, Stage] = {}
    split: str = "train"

    @field_validator("split")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("train", "val"):
            raise DataError(f"unknown split {value!r}; accepted: train, val")
        return value


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path, list(overrides))
    return str(caught.value).replace(str(path), "FILE")


def test_values_arrive_with_their_types(write):
    run = load_config(
        Run, write("out: runs/a\nlr: 1e-4\nstages:\n  - {steps: 3}\nmethod: {name: frozen, layers: [1]}\n")
    )
    assert run == Run(out=Path("runs/a"), lr=1e-4, stages=[Stage(steps=3)], method=Frozen(layers=[1]))


def test_exponent_without_point_is_a_number_even_where_any_type_fits(write):
    assert read_yaml(write("a: 1e-4\nb: -2E+3\nc: 1e\n")) == {"a": 1e-4, "b": -2000.0, "c": "1e"}


def test_merge_keys_give_way_to_own_keys(write):
    assert read_yaml(write("base: &b {x: 1, y: 2}\nown:\n  <<: *b\n  y: 3\n"))["own"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("out: a\nnoet: x\n", "FILE:2: unknown key 'noet'; did you mean 'note'?; accepted: out, note, lr, fps, method"),
        ("out: a\nmethod:\n  name: routing\n  kep: 0.5\n", "FILE:4: unknown key 'method.kep'; did you mean 'keep'?"),
        (
            "out: a\nmethod:\n  name: routing\n  schedule:\n    kind: list\n    layer: [1]\n    layers: [1]\n",
            "FILE:6: unknown key 'method.schedule.layer'; did you mean 'layers'?; accepted: kind, layers",
        ),
        ("out: a\nstages:\n  - steps: 3\n  - step: 3\n", "FILE:4: unknown key 'stages.1.step'; did you mean 'steps'?"),
        ("out: a\ntables:\n  x: {stps: 3}\n", "FILE:3: unknown key 'tables.x.stps'; did you mean 'steps'?"),
        (
            "out: a\nmethod: {name: routng}\n",
            "FILE:2: method: unknown name 'routng'; did you mean 'routing'?; accepted: ",
        ),
        (
            "out: a\nmethod:\n  name: routing\n  keep: 1.5\n",
            "FILE:4: method.keep: got 1.5, accepted: a number in (0, 1]",
        ),
        ("out: a\nfirst:\n  keep: 0\n", "FILE:3: first.keep: got 0, accepted: a number in (0, 1]"),
        ("out: a\nmethod: {name: routing, combine: detla}\n", "did you mean 'delta'?"),
        (
            "out: a\nmethod: {name: routing, schedule: {step: 0}}\n",
            "FILE:2: method.schedule: missing key 'kind', which says what this is; accepted: 'every', 'list'",
        ),
        ("note: a\n", "FILE: missing key 'out'; given: note"),
        ("out: a\nsplit: test\n", "FILE:2: split: unknown split 'test'; accepted: train, val"),
        ("out: a\nstages: 3\n", "FILE:2: stages: Input should be a valid list (got 3)"),
        ("out: a\nlr: .nan\n", "FILE:2: lr: Input should be a finite number"),
        ("out: a\nnote: x\nout: b\n", "FILE:3: key 'out' is given twice, first in line 1"),
        ("out: a\nfirst: {steps: 1, steps: 2}\n", "FILE:2: key 'steps' is given twice"),
        ("out: [a\n", "FILE:2: not valid YAML"),
        ("out: \x00\n", "FILE: not valid YAML"),
        ("when: 2026-13-45\n", "FILE: not valid YAML"),
        ("- a\n", "FILE: expected a mapping of keys, got list"),
        ("", "FILE: the file is empty"),
    ],
)
def test_faults_name_place_key_value_and_what_is_accepted(write, text, said):
    assert said in refused(write(text))


def test_every_fault_is_listed(write):
    assert refused(write("noet: 1\nfps: many\n")).count("\n") >= 2


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(tmp_path / "binary.yaml")


def test_overrides_are_typed_by_their_field(write):
    path = write("out: a\nstages:\n  - {steps: 3}\n")
    overrides = [
        "out=2024",
        "note=null",
        "lr=3e-4",
        "stages.0.keep=0.5",
        "stages.0.title=1e3",
        "method.keep=1",
        "note=no",
    ]
    run = load_config(Run, path, overrides)
    assert run.out == Path("2024")
    assert run.note == "no"
    assert run.lr == 3e-4
    assert run.stages == [Stage(steps=3, keep=0.5, title="1e3")]
    assert run.method == Routing(keep=1.0)
    assert load_config(Run, path, ["note=a: b"]).note == "a: b"


def test_override_of_a_missing_group_starts_from_its_default(write):
    run = load_config(Run, write("out: a\n"), ["first.title=b", "method.combine=delta"])
    assert run.first == Stage(steps=77, title="b")
    assert run.method == Routing(keep=0.5, combine="delta")


def test_override_may_change_the_kind_of_a_group(write):
    run = load_config(Run, write("out: a\n"), ["method.schedule.kind=list", "method.schedule.layers=[1, 3]"])
    assert run.method == Routing(keep=0.5, schedule=Picked(layers=[1, 3]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("frist.steps=3", "override 'frist.steps=3': unknown key 'frist'; did you mean 'first'?"),
        ("first.stpes=3", "override 'first.stpes=3': unknown key 'first.stpes'; did you mean 'steps'?"),
        ("method.kep=0.3", "override 'method.kep=0.3': unknown key 'method.kep'; did you mean 'keep'?"),
        ("method.keep=2", "override 'method.keep=2': method.keep: got 2, accepted: a number in (0, 1]"),
        ("out.name=3", "'out' is 'a', not a group of keys"),
        ("stages.1.steps=3", "'1' is no place in a list of 1"),
        ("stages.last.steps=3", "'last' is no place in a list of 1"),
        ("lr=[1", "override 'lr=[1'"),
    ],
)
def test_faulty_overrides_are_named(write, override, said):
    assert said in refused(write("out: a\nstages:\n  - {steps: 3}\n"), override)


def test_plain_values_need_no_file():
    assert apply_overrides({"a": 1}, ["b.c=2"]) == {"a": 1, "b": {"c": 2}}
    with pytest.raises(ConfigError, match=r"^here: unknown key 'stpes'; did you mean 'steps'\?"):
        parse(Stage, {"stpes": 1}, "here")


def test_configuration_does_not_change_after_construction():
    with pytest.raises(ValueError, match="frozen"):
        Stage().steps = 3
