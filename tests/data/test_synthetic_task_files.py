"""The files of the full grammar: the readers of the true formats give tasks, steps and acts back."""

import csv
import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import pytest

from vtskip.cli.main import main
from vtskip.config import parse
from vtskip.data import DataConfig, build
from vtskip.data.coin import read_coin
from vtskip.data.egoexo import read_atomic, read_keysteps
from vtskip.data.files import read_json
from vtskip.data.goalstep import read_goalstep
from vtskip.data.labels import class_words, task_words
from vtskip.data.lta import read_lta, read_taxonomy
from vtskip.data.synthetic import TIERS, make
from vtskip.data.synthetic.bayes import Known, anticipation_of, ceilings_of, task_ceilings
from vtskip.data.synthetic.bayes_ahead import anticipation, narration
from vtskip.data.synthetic.encode import content_hash, write_video
from vtskip.data.synthetic.grammars import GRAMMARS, action_of, grammar_of
from vtskip.data.synthetic.holdout import Rules
from vtskip.data.synthetic.levels import LEVELS
from vtskip.data.synthetic.relevance import _Outlines
from vtskip.data.synthetic.render import Renderer
from vtskip.data.synthetic.task_plan import is_hard
from vtskip.data.synthetic.tasks import TASKS, steps
from vtskip.data.synthetic.tiers import RATES, Order
from vtskip.data.timeline import clean_text
from vtskip.data.video import probe
from vtskip.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def lines(tasked):
    return {path.stem: read_json(path) for path in sorted((tasked / "timelines").iterdir())}


def _texts(sample):
    return [turn["content"] for turn in sample.conversation if turn["role"] == "assistant"]


def test_coin_has_the_tasks_and_their_steps(tasked, lines):
    database = read_json(tasked / "coin/COIN.json")["database"]
    for uid, line in lines.items():
        record = database[uid]
        assert record["class"] == line["task"] and record["recipe_type"] == list(TASKS).index(line["task"])
        assert len(record["annotation"]) == len(line["task_steps"])
        for entry, part in zip(record["annotation"], line["task_steps"]):
            acts = line["steps"][part["first"] : part["last"] + 1]
            rate = Fraction(line["fps"])
            assert [t * rate for t in entry["segment"]] == pytest.approx([acts[0]["contact"], acts[-1]["end"]])
            step = steps()[int(entry["id"]) - 1]
            assert (step.label, step.kind, step.shape) == (entry["label"], part["kind"], part["shape"])
            assert step.into == part.get("into", "") and all(
                a.get("into", "").endswith(step.into) for a in acts if "into" in a
            )
    with (tasked / "coin/taxonomy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["Target Label"]: row["Domain"] for row in rows} == {n: t.domain for n, t in TASKS.items()}
    assert {row["Action Label"] for row in rows} == {step.label for step in steps()}
    assert all(steps()[int(row["Action Id"]) - 1] in TASKS[row["Target Label"]].steps for row in rows)
    asked = list(read_coin(tasked / "coin/COIN.json", tasked / "videos", 2, task="procedure_goal"))
    goals = {task_words(line["task"]) for line in lines.values()}
    assert asked and all(any(goal in s.conversation[1]["content"] for goal in goals) for s in asked)


def test_narrations_are_of_the_acts(tasked, lines):
    config = DataConfig(kind="synthetic", root=tasked, tier="tasks", split="train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vtskip.data.synthetic.make", lambda *a, **k: tasked)
        samples = build(config, progress=False)
        hard = build(config.model_copy(update={"split": "test_hard", "task": "task"}), progress=False)
    for sample in samples:
        line = lines[sample.uid.split("/")[0]]
        assert _texts(sample) == [clean_text(action_of(act).narration) for act in line["steps"]]
    expected = [uid for uid in read_json(tasked / "splits.json")["test"] if lines[uid]["hard"]]
    assert expected and [s.meta["video_uid"] for s in hard] == expected
    assert all(line["hard"] == is_hard(tuple(line["seed"])) for line in lines.values())


def test_goalstep_and_ego_exo_have_the_steps(tasked, lines):
    for split, uids in read_json(tasked / "splits.json").items():
        if split == "test_hard":
            assert not (tasked / "ego4d/goalstep_test_hard.json").exists()
            continue
        path = tasked / f"ego4d/goalstep_{split}.json"
        told = {s.uid: _texts(s) for s in read_goalstep(path, tasked / "videos", 10, level="substeps")}
        keysteps = {
            s.uid: s for s in read_keysteps(tasked / f"egoexo/annotations/keystep_{split}.json", tasked / "videos", 10)
        }
        for uid in uids:
            line, visits = lines[uid], grammar_of(lines[uid]).visits(lines[uid])
            assert told[uid] == [clean_text(action_of(act).label) for act in line["steps"]]
            assert len(_texts(keysteps[uid])) == len(visits)
        for video in read_json(path)["videos"]:
            line = lines[video["video_uid"]]
            assert video["goal_category"] == f"{TASKS[line['task']].domain}:{line['task']}".upper()
            rows = [s for s in video["segments"] if s["is_relevant"] != "irrelevant"]
            optional = [part["optional"] for part in line["task_steps"]]
            assert [s["is_relevant"] == "optional" for s in rows] == optional
            assert video["summary"] == [s["step_description"] for s in rows]
    atomic = list(read_atomic(tasked / "egoexo/annotations/atomic_descriptions_train.json", tasked / "videos", 10))
    takes = read_json(tasked / "egoexo/takes.json")
    assert atomic and {t["parent_task_name"] for t in takes} == {
        task_words(line["task"]).capitalize() for line in lines.values()
    }


def test_lta_has_sixteen_verbs_and_twenty_four_nouns(tasked, lines):
    files = tasked / "ego4d"
    taxonomy = read_taxonomy(files / "fho_lta_taxonomy.json")
    assert (len(taxonomy.verbs), len(taxonomy.nouns)) == (16, 24)
    samples = list(read_lta(files / "fho_lta_train.json", files / "long", 2, files / "fho_lta_taxonomy.json"))
    acts = sum(len(lines[uid]["steps"]) for uid in read_json(tasked / "splits.json")["train"])
    assert samples and len(samples) <= acts - 27
    assert all(len(_texts(s)[0].splitlines()) == 20 for s in samples)


def test_one_clip_in_eight_has_another_rate_and_loses_nothing_by_it(tasked, lines, tmp_path):
    """29.97 frames per second in the file, in the timeline and on the model's grid, where each act shows in its own frames."""
    line = lines["tasks-0005"]
    assert [other["uid"] for other in lines.values() if other["fps"] != "10"] == [line["uid"]]
    info = probe(tasked / "videos/tasks-0005.mp4")
    assert (info.fps, info.frames) == (Fraction(30000, 1001), line["frames"]) and 20 <= info.duration < 40.1
    clip = read_json(tasked / "manifest.json")["clips"]["tasks-0005"]
    assert (clip["fps"], clip["frames"]) == ("30000/1001", line["frames"])
    files = {"annotations": tasked / "ego4d/narration.json", "videos": tasked / "videos"}
    config = DataConfig(kind="ego4d_narration", **files, passes=[1], lead_in=True)
    (sample,) = (s for s in build(config, progress=False) if s.meta["video_uid"] == "tasks-0005")
    at, shown = -1, []
    for turn in sample.conversation:
        at += turn.get("num_frames", 0)
        shown += [sample.frames[at]] if turn["role"] == "assistant" else []
    assert all(act["contact"] <= frame < act["end"] for act, frame in zip(line["steps"], shown, strict=True))
    plan = Order("tasks").plan(5)
    write_video(tmp_path / "again.mp4", Renderer(plan, 64).frames(), plan.rate)
    assert content_hash(tmp_path / "again.mp4") == clip["sha256"]  # the same frames whenever it is made
    areas = read_json(tasked / "relevance/tasks-0005.json")
    assert areas["frames"] == line["frames"] and max(area[2] for area in areas["areas"]) > 0.8 * line["frames"]


def test_rates_take_turns_and_change_no_plan():
    order = Order("full")
    rates = [order.plan(number).rate for number in range(64)]
    assert {n % 8 for n, rate in enumerate(rates) if rate != 10} == {5}
    assert [str(rate) for rate in rates[5::8]] == [*RATES, *RATES, *RATES[:2]]
    moved = order.plan(5)
    plan = GRAMMARS["tasks"].plan("full-0005", moved.seed, order.spec.seconds, 10, Rules())
    assert [s.action for s in moved.steps] == [s.action for s in plan.steps]
    for one, other in zip(plan.steps, moved.steps):
        for name in ("approach", "contact", "end", "away"):
            late = getattr(other, name) / moved.rate - Fraction(getattr(one, name), 10)
            assert 0 <= late < 1 / moved.rate
    at = plan.steps[1].contact + 3
    layers = [
        set(_Outlines(p, 64, LEVELS["L1"]).shapes(t)) for p, t in ((plan, at), (moved, math.ceil(at * moved.pace)))
    ]
    assert layers[0] == layers[1] > {"hand", "arm"}


def test_second_nouns_are_in_the_texts_of_every_format(tasked, lines):
    acts = [act for line in lines.values() for act in line["steps"] if "into" in act]
    assert acts and all(len(act["into_box"]) == 4 and action_of(act).into == act["into"] for act in acts)
    coin = read_json(tasked / "coin/COIN.json")["database"].values()
    assert any(" into the " in step["label"] for record in coin for step in record["annotation"])
    for name in ("ego4d/narration.json", "ego4d/all_narrations_redacted.json", "ego4d/goalstep_train.json"):
        text = (tasked / name).read_text()
        assert any(f"into the {act['into']}" in text for act in acts), name
    atomic = (tasked / "egoexo/annotations/atomic_descriptions_train.json").read_text()
    assert any(f"the {act['colour']} {act['shape']} into the {act['into']}." in atomic for act in acts)
    taxonomy, train = read_json(tasked / "ego4d/fho_lta_taxonomy.json"), read_json(tasked / "ego4d/fho_lta_train.json")
    told = {(row["verb_label"], row["noun_label"]) for row in train["clips"]}
    names = [class_words(name) for name in taxonomy["verbs"]], [class_words(name) for name in taxonomy["nouns"]]
    own = [act for uid in read_json(tasked / "splits.json")["train"] for act in lines[uid]["steps"] if "into" in act]
    assert own
    for act in own:
        verb = {"pour": "pour", "insert": "put"}[act["verb"]]
        assert (names[0].index(verb), names[1].index(f"{act['colour']} {act['shape']}")) in told


def test_smoke_is_the_set_that_it_was(smoke):
    """Documented regression values: a manifest has the hash of all decoded frames. Held for the encoder it was made with."""
    _same_encoder()
    assert _digest(smoke / "manifest.json") == "70852f7bd9fb434dae9912a67723447569d7c394c08099e178cdd2ff715f8d85"


@pytest.mark.slow
def test_small_is_the_set_that_records_were_measured_on(tmp_path):
    _same_encoder()
    out = make("small", tmp_path / "small", progress=False)
    assert _digest(out / "manifest.json") == "16144c7595447294d6859ed26321040d4a47a03e6c833d400e2304fca5284c9d"


def _same_encoder():
    import av

    if av.__version__ != "18.1.0":
        pytest.skip(f"coded frames are those of the encoder of PyAV 18.1.0, not {av.__version__}")


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_ceilings_by_the_manifest(tasked):
    known = ceilings_of(tasked)
    assert known.pop("narration") == Known(*narration(Rules())) and known == task_ceilings(Rules())
    assert anticipation_of(tasked, 4, 3)["verb"] == Known(*anticipation(Rules(), 4, 3)["verb"])


def test_another_grammar_is_another_set(tmp_path, monkeypatch):
    from vtskip.data.synthetic.tiers import Tier

    monkeypatch.setitem(TIERS, "smoke", Tier(train=1, val=0, test=1, seconds=(8, 12), size=48))
    assert Order("full").recipe["grammar"] == Order("smoke", grammar="tasks").recipe["grammar"] == "tasks"
    assert "grammar" not in Order("smoke", grammar="table").recipe and "grammar" not in Order("small").recipe
    out = make("smoke", tmp_path, progress=False, workers=1, grammar="tasks")
    assert read_json(out / "timelines/smoke-0000.json")["task"] in TASKS
    with pytest.raises(ConfigError, match="holds other synthetic data"):
        make("smoke", out, progress=False)
    with pytest.raises(ConfigError, match=r"unknown grammar 'task'; did you mean 'tasks'\?; accepted: table, tasks"):
        make("smoke", out, grammar="task")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"level": "L7"}, r"level 'L7'.*accepted: L0, L1, L2, L3, L4"),
        ({"level": "steps"}, "level 'steps'"),
        ({"holdout": "pair"}, r"holdout 'pair'; did you mean 'pairs'\?; accepted: pairs, orders"),
        ({"grammar": "tables"}, r"grammar 'tables'; did you mean 'table'\?"),
        ({"levl": "L1"}, r"'levl'.*level"),
        ({"kind": "goalstep", "annotations": "a", "videos": "v", "level": "L1"}, "level 'L1'.*accepted: .*substeps"),
        ({"kind": "coin", "annotations": "a", "videos": "v", "grammar": "tasks"}, "no key 'grammar'"),
    ],
)
def test_wrong_keys(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(DataConfig, {"kind": "synthetic", "root": "x"} | values, "test.yaml")


def test_keys_reach_the_maker(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("vtskip.data.synthetic.make", lambda *a, **k: seen.append(a))
    values = {"tier": "tasks", "seed": 3, "level": "L3", "holdout": "looks", "grammar": "tasks"}
    with pytest.raises(DataError):
        build(DataConfig(kind="synthetic", root=tmp_path, **values), progress=False)
    assert seen == [("tasks", tmp_path, 3, False, None, "L3", "looks", "tasks")]


def test_a_list_file_names_a_split(smoke, tmp_path):
    path = tmp_path / "val.txt"
    path.write_text("smoke-0001\n\nsmoke-0009\n")
    files = {"annotations": smoke / "coin/COIN.json", "videos": smoke / "videos", "splits": path}
    found = build(DataConfig(kind="coin", split="val", **files), progress=False)
    assert [s.uid for s in found] == ["smoke-0001", "smoke-0009"]
    with pytest.raises(DataError, match=r"val\.txt: unknown split 'vall'; did you mean 'val'"):
        build(DataConfig(kind="coin", split="vall", **files), progress=False)


def test_a_killed_maker_s_clips_are_kept_by_the_next(smoke, tmp_path):
    """SIGKILL to all of its processes, with clips half made; the set is then the same as any other."""
    out = tmp_path / "set"
    command = [sys.executable, "-m", "vtskip", "data", "make", "synthetic", "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while len(list(out.glob("timelines/*.json"))) < 3:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("timelines/*.json")}
    make("smoke", out, progress=False, workers=1)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert (out / "manifest.json").read_bytes() == (smoke / "manifest.json").read_bytes()


def test_the_command_counts_each_clip_once(tmp_path, monkeypatch, capsys):
    from vtskip.data.synthetic.tiers import Tier

    monkeypatch.setitem(TIERS, "tasks", Tier(train=0, val=0, test=1, seconds=(20, 40), size=32, grammar="tasks"))
    assert main(["data", "make", "synthetic", "--tier", "tasks", "--out", str(tmp_path / "o"), "--workers", "1"]) == 0
    assert "1 clips (0 train, 0 val, 1 test, 1 test_hard)" in capsys.readouterr().out
