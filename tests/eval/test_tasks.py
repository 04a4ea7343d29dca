"""Tasks from their files: registry, data sections, and every evaluator on a tiny model and real clips."""

import json

import numpy as np
import pytest

from vtskip.config import parse
from vtskip.data import DataConfig
from vtskip.errors import ConfigError, DataError
from vtskip.eval import EvalConfig, run
from vtskip.eval.scores import closed_set
from vtskip.eval.sets import due_replies, question, task_sets
from vtskip.eval.tasks import load_task, scorer_factory, task_data, task_files

QUESTIONS = ["coin_step", "coin_next", "coin_task", "coin_procedure", "coin_procedure_goal"]


def configured(checkpoint, **values):
    return parse(EvalConfig, {"model": str(checkpoint), "rows": [], "live_clips": 0} | values, "test")


# ------------------------------------------------------------------------------------------------------------ registry


def test_every_task_file_is_a_task():
    assert {*QUESTIONS, "ego4d_narration", "ego4d_narration_rollout", "ego4d_lta", "visual_qa"} <= task_files().keys()
    for name in task_files():
        task = load_task(name)
        flavour, _, metric = task.primary.partition("/")
        assert flavour in ("reference", "strict")
        assert metric
        assert callable(scorer_factory(task.scores))


def test_unknown_names_say_which_exist(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'coin_step'"):
        load_task("coin_steps")
    with pytest.raises(ConfigError, match="no folder"):
        load_task("coin_step", [tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="did you mean 'labels'"):
        scorer_factory("labelss")
    with pytest.raises(ConfigError, match="no_such_module"):
        scorer_factory("no_such_module:make")
    (tmp_path / "other.yaml").write_text((task_files()["coin_step"]).read_text())
    with pytest.raises(ConfigError, match="the name of the file, 'other'"):
        load_task("other", [tmp_path])


def test_data_sections_are_the_run_s_the_task_s_and_the_entry_s(coin, tmp_path):
    base = parse(DataConfig, {**coin, "fps": 4.0}, "test")
    data = task_data(load_task("coin_next"), base, {"max_frames": 3})
    assert (data.task, data.fps, data.max_frames, data.split) == ("next", 4.0, 3, "test")
    own = {"kind": "llava", "annotations": "qa.json", "videos": "media"}
    alone = task_data(load_task("visual_qa"), parse(DataConfig, {**coin, "root": str(tmp_path)}, "test"), own)
    assert (alone.kind, alone.root, alone.split) == ("llava", tmp_path, None)
    with pytest.raises(ConfigError, match="cannot read data of kind 'coin'; accepted: ego4d_lta"):
        task_data(load_task("ego4d_lta"), base, {})


def test_a_run_needs_data_for_every_task():
    with pytest.raises(ConfigError, match="'data' is missing"):
        parse(EvalConfig, {"model": "m", "tasks": ["coin_step"]}, "test")
    with pytest.raises(ConfigError, match="'data' is missing"):
        parse(EvalConfig, {"model": "m"}, "test")


# ----------------------------------------------------------------------------------------------------------- questions


@pytest.fixture(scope="module")
def answered(request, tmp_path_factory):
    """All question tasks under the rows that apply to them."""
    checkpoint, coin = request.getfixturevalue("checkpoint"), request.getfixturevalue("coin")
    out = tmp_path_factory.mktemp("answers")
    rows = ["blind", "motion", "majority", "bigram"]
    record = run(configured(checkpoint, data=coin, tasks=QUESTIONS, rows=rows, out=str(out)))
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return record, lines


def test_every_task_has_estimates_cost_and_differences(answered):
    record, lines = answered
    assert list(record["tasks"]) == QUESTIONS
    sizes = {name: (task["n_items"], task["n_clusters"]) for name, task in record["tasks"].items()}
    assert sizes == {"coin_step": (5, 2), "coin_next": (3, 2), "coin_task": (2, 2)} | dict.fromkeys(
        ("coin_procedure", "coin_procedure_goal"), (3, 2)
    )
    step, after = record["tasks"]["coin_step"], record["tasks"]["coin_next"]
    assert list(step["rows"]) == ["model", "blind", "motion", "majority"]
    assert list(after["rows"]) == ["model", "blind", "motion", "majority", "bigram"]
    assert step["rows"]["model"]["strict"]["accuracy"]["items"] == 5
    assert step["cost"]["motion"]["kept_vision"] == pytest.approx([1.0, 0.4, 1.0, 0.4])
    assert step["cost"]["model"]["first_token_seconds_p50"] > 0
    assert "majority" not in step["cost"]
    assert step["model_less_row"]["strict/accuracy"]["majority"]["items"] == 5
    assert "accuracy" not in record
    assert all(len(line["answers"]) == 1 for line in lines)


def test_priors_are_what_the_other_split_makes_likely(answered):
    _, lines = answered
    said = {(line["row"], line["uid"]): line["answers"][0] for line in lines}
    assert said["majority", "b/step0"] == "Cut the bread."
    assert said["bigram", "a/next0"] == "Open the lid."
    assert said["bigram", "a/procedure0"] == "1. Open the lid.\n2. Cut the bread."
    right = {line["uid"]: line["scores"]["strict"]["accuracy"] for line in lines if line["row"] == "bigram"}
    assert right["a/next0"] == [1.0, 1.0]
    assert right["a/procedure0"] == [2.0, 2.0]
    assert (said["bigram", "b/next0"], right["b/next0"]) == ("Cut the bread.", [0.0, 1.0])  # never seen: any transition


def test_bigram_alone_needs_a_task_that_asks_what_follows(checkpoint, coin):
    with pytest.raises(ConfigError, match="'bigram' has no answer to any of the tasks"):
        run(configured(checkpoint, data=coin, tasks=["coin_step"], rows=["bigram"]))


def test_closed_sets_are_those_of_the_split_or_of_all(coin):
    task = load_task("coin_step")
    data = parse(DataConfig, {**coin, "task": "step", "split": "train"}, "test")
    config = parse(EvalConfig, {"model": "m", "tasks": ["coin_step"], "data": {**coin, "split": "train"}}, "test")
    samples = task_sets(config)[0].samples
    assert set(closed_set(task, data, samples)) == {"cut the bread", "open the lid"}
    everything = task.model_copy(update={"closed_set": "all"})
    assert set(closed_set(everything, data, samples)) == {"cut the bread", "open the lid", "look around"}


def test_answers_are_matched_with_the_taxonomy_where_a_run_says_so(coin, checkpoint, tmp_path):
    """Labels that no video of the file has are in the way of a fuzzy match, too."""
    table = tmp_path / "taxonomy.csv"
    labels = ["cut the bread", "open the lid", "look around", "close the lid"]
    rows = [f"Kitchen,1,MakeBread,{n},{label}" for n, label in enumerate(labels)] + ["Garden,2,CutTheHedge,9,cut it"]
    table.write_text("Domain,Target Id,Target Label,Action Id,Action Label\n" + "\n".join(rows) + "\n")

    def sets(name, closed, **data):
        run = {"task": name, "closed_set": closed, "data": data}
        (part,) = task_sets(parse(EvalConfig, {"model": "m", "tasks": [run], "data": coin}, "test"))
        return part, closed_set(part.task, part.data, part.samples)

    part, found = sets("coin_step", "taxonomy", taxonomy=str(table))
    assert set(found) == {*labels, "cut it"}
    assert sets("coin_task", "taxonomy", taxonomy=str(table))[1] == ["cut the hedge", "make bread"]
    sample = next(s for s in part.samples if s.meta["labels"] == ["open the lid"])
    near = part.scorer(sample, {"answers": ["Close the lid"]})
    assert near["reference"]["accuracy"] == (0.0, 1.0)
    of_split = sets("coin_step", None)[0].scorer(sample, {"answers": ["Close the lid"]})
    assert of_split["reference"]["accuracy"] == (1.0, 1.0)
    with pytest.raises(ConfigError, match="'coin_step': closed_set 'taxonomy' needs 'taxonomy' in its data"):
        sets("coin_step", "taxonomy")
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        sets("coin_step", "taxonomy", taxonomy=str(tmp_path / "nowhere.csv"))


def test_the_answer_is_not_shown(coin):
    config = parse(EvalConfig, {"model": "m", "tasks": ["coin_procedure"], "data": coin}, "test")
    for sample in task_sets(config)[0].samples:
        assert [turn["role"] for turn in question(sample)][-2:] == ["user", "stream"]


# ------------------------------------------------------------------------------------------------- LTA, LLaVA, rollouts


def test_anticipation_has_edit_distances_of_all_beams(checkpoint, clips, tmp_path):
    (tmp_path / "taxonomy.json").write_text(json.dumps({"verbs": ["cut", "open"], "nouns": ["bread", "lid"]}))
    rows = [
        {"video_uid": "a", "clip_uid": "k", "action_idx": i, "clip_parent_start_sec": 0.0, "verb_label": i % 2}
        | {"action_clip_start_sec": i / 2, "action_clip_end_sec": i / 2 + 0.4, "noun_label": i % 2}
        for i in range(6)
    ]
    (tmp_path / "lta.json").write_text(json.dumps({"clips": rows}))
    data = {"kind": "ego4d_lta", "root": str(tmp_path), "annotations": "lta.json", "taxonomy": "taxonomy.json"}
    data |= {"videos": str(clips / "videos"), "seen": 2, "ahead": 3}
    record = run(configured(checkpoint, tasks=[{"task": "ego4d_lta", "data": data}], out=str(tmp_path / "out")))
    scores = record["tasks"]["ego4d_lta"]["rows"]["model"]
    names = {
        f"{part}_{kind}" for part in ("verb", "noun", "action") for kind in ("ed", "aued", "ed_damerau", "accuracy")
    }
    assert scores["reference"].keys() == scores["strict"].keys() == names
    assert all(0 <= scores[f][n]["value"] <= 1 for f in scores for n in names)
    lines = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [len(line["answers"]) for line in lines] == [5, 5]
    assert not (tmp_path / "out/submission_ego4d_lta.json").exists()


def test_priors_of_tasks_without_lists_of_splits(checkpoint, coin, clips, tmp_path):
    """LTA's training actions are in another file: the most frequent one of every place. Without such a file there is no row."""
    (tmp_path / "taxonomy.json").write_text(json.dumps({"verbs": ["cut", "open"], "nouns": ["bread", "lid"]}))
    for name, verbs in {"val": (0, 0, 0, 1, 0), "train": (0, 1, 1, 1, 0, 0, 1)}.items():
        rows = [
            {"video_uid": "a", "clip_uid": name, "action_idx": i, "clip_parent_start_sec": 0.0, "verb_label": verb}
            | {"action_clip_start_sec": i / 2, "action_clip_end_sec": i / 2 + 0.4, "noun_label": 0}
            for i, verb in enumerate(verbs)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"clips": rows}))
    data = {"kind": "ego4d_lta", "root": str(tmp_path), "annotations": "val.json", "taxonomy": "taxonomy.json"}
    task = {"task": "ego4d_lta", "data": data | {"videos": str(clips / "videos"), "seen": 2, "ahead": 3}}
    both = {"data": coin, "rows": ["majority"], "max_samples": 1}
    record = run(configured(checkpoint, tasks=["coin_step", task], **both))
    assert [list(record["tasks"][name]["rows"]) for name in ("coin_step", "ego4d_lta")] == [
        ["model", "majority"],
        ["model"],
    ]
    with pytest.raises(ConfigError, match="'majority' has no answer to any of the tasks"):
        run(configured(checkpoint, tasks=[task], rows=["majority"]))

    own = task | {"prior": {"annotations": "train.json"}}
    record = run(configured(checkpoint, tasks=[own], rows=["majority"], out=str(tmp_path / "out")))
    lines = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if line["row"] == "majority")
    assert line["answers"] == ["1. Open bread.\n2. Cut bread.\n3. Cut bread."] * 5
    assert line["scores"]["strict"]["verb_accuracy"] == [1, 3] and line["scores"]["strict"]["noun_accuracy"] == [3, 3]
    wrong = task | {"prior": {"anotations": "train.json"}}
    with pytest.raises(ConfigError, match=r"prior of task 'ego4d_lta'.*annotations"):
        run(configured(checkpoint, tasks=[wrong], rows=["majority"]))


def test_anticipation_on_a_synthetic_set_has_ceilings(checkpoint, clips, tmp_path):
    """Of the first answer, place by place; of the test file of such a set, and of no other file."""
    from vtskip.data.synthetic.bayes import anticipation_of

    (tmp_path / "taxonomy.json").write_text(json.dumps({"verbs": ["cut", "open"], "nouns": ["bread", "lid"]}))
    rows = [
        {"video_uid": "a", "clip_uid": "k", "action_idx": i, "clip_parent_start_sec": 0.0, "verb_label": 0}
        | {"action_clip_start_sec": i / 2, "action_clip_end_sec": i / 2 + 0.4, "noun_label": 0}
        for i in range(5)
    ]
    (tmp_path / "ego4d").mkdir()
    data = {"kind": "ego4d_lta", "root": str(tmp_path), "taxonomy": "taxonomy.json", "seen": 2, "ahead": 3}
    data |= {"videos": str(clips / "videos")}
    found = {}
    for name, manifest in (("test", None), ("train", {"recipe": {}}), ("test", {"recipe": {"grammar": "tasks"}})):
        (tmp_path / f"ego4d/fho_lta_{name}.json").write_text(json.dumps({"clips": rows}))
        if manifest is not None:
            (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        own = data | {"annotations": f"ego4d/fho_lta_{name}.json"}
        record = run(configured(checkpoint, tasks=[{"task": "ego4d_lta", "data": own}]))
        found[name, manifest is None] = record["tasks"]["ego4d_lta"].get("ceilings")
    assert found["test", True] is found["train", False] is None
    known = anticipation_of(tmp_path, 2, 3)
    assert found["test", False] == {
        f"strict/{name}_accuracy": {"best": known[name].best, "blind": known[name].blind}
        for name in ("verb", "noun", "action")
    }


def test_accuracy_of_anticipation_counts_places():
    from vtskip.eval.lta import Actions
    from vtskip.eval.scores import _edits

    actions, truth = Actions(["cut", "open"], ["bread", "lid"]), [(0, 0), (1, 1), (0, 1), (1, 0)]
    said = [[(0, 0), (0, 1)], truth]  # the first answer alone counts, and what it leaves out is wrong
    counts = _edits(said, truth, actions)
    assert (counts["verb_accuracy"], counts["noun_accuracy"], counts["action_accuracy"]) == ((1, 4), (2, 4), (1, 4))


def test_anticipation_without_published_actions_writes_what_the_server_takes(checkpoint, clips, tmp_path):
    (tmp_path / "taxonomy.json").write_text(json.dumps({"verbs": ["cut", "open"], "nouns": ["bread", "lid"]}))
    rows = [
        {"video_uid": "a", "clip_uid": "k", "action_idx": i, "clip_parent_start_sec": 0.0}
        | {"action_clip_start_sec": i / 2, "action_clip_end_sec": i / 2 + 0.4}
        for i in range(6)
    ]
    (tmp_path / "lta.json").write_text(json.dumps({"clips": rows}))
    data = {"kind": "ego4d_lta", "root": str(tmp_path), "annotations": "lta.json", "taxonomy": "taxonomy.json"}
    data |= {"videos": str(clips / "videos"), "seen": 2, "ahead": 4}
    run(configured(checkpoint, tasks=[{"task": "ego4d_lta", "data": data}], rows=["blind"], out=str(tmp_path / "out")))
    answers = json.loads((tmp_path / "out/submission_ego4d_lta.json").read_text())
    assert list(answers) == ["k_1"]
    for name in ("verb", "noun"):
        assert [len(candidate) for candidate in answers["k_1"][name]] == [4] * 5
        assert {label for candidate in answers["k_1"][name] for label in candidate} <= {0, 1}


def test_questions_about_images_and_text_alone(checkpoint, clips, tmp_path):
    from PIL import Image

    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / "i.png")
    talk = [{"from": "human", "value": "<image>\nCut?"}, {"from": "gpt", "value": "Open the lid."}]
    alone = [{"from": "human", "value": "Cut?"}, {"from": "gpt", "value": "bread"}]
    records = [{"id": 1, "image": "i.png", "conversations": talk}, {"id": 2, "conversations": alone}]
    (tmp_path / "qa.json").write_text(json.dumps(records))
    data = {"kind": "llava", "annotations": str(tmp_path / "qa.json"), "videos": str(tmp_path)}
    for size in (1, 2):
        record = run(configured(checkpoint, tasks=[{"task": "visual_qa", "data": data}], batch_size=size))
        task = record["tasks"]["visual_qa"]
        assert (task["n_items"], task["rows"]["model"]["strict"]["chrf"]["items"]) == (2, 2)


def test_rollout_keeps_its_own_replies(checkpoint, eval_config, tmp_path):
    rows, out = ["blind", "motion", "downsample"], tmp_path / "out"
    record = run(
        configured(checkpoint, data=eval_config["data"], tasks=["ego4d_narration_rollout"], rows=rows, out=str(out))
    )
    task = record["tasks"]["ego4d_narration_rollout"]
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [r for r in ("model", *rows) for _ in range(2)]
    for line in lines:
        assert all(0 <= frame < line["cost"]["frames"] for frame, _ in line["said"])
        assert line["due"], "the annotation's texts"
    assert task["cost"]["model"]["tokens_per_second"] > 0
    replied = any(line["said"] for line in lines if line["row"] == "model")
    assert replied
    assert task["cost"]["model"]["first_token_seconds_p95"] > 0
    strict = task["rows"]["model"]["strict"]
    assert {"timing_f1@1", "miss_rate", "false_triggers_per_minute", "chrf", "bleu", "exact"} <= strict.keys()
    said = [len(line["said"]) for line in lines[:2]]
    assert task["corpus"]["model"]["reference"]["pairs"] == sum(len(x["due"]) for x, n in zip(lines, said) if n)
    # texts at 1 s and 2.5 s of one clip and 2 s of the other: the first frame, and 3 frames later
    assert [frame for line in lines[:2] for frame, _ in line["due"]] == [0, 3, 0]


def test_goalstep_and_ego_exo_are_streams_and_rollouts(checkpoint, clips, tmp_path):
    steps = [
        {"start_time": float(i), "end_time": i + 1.0, "step_description": f"cuts the {w}"} for i, w in enumerate("ab")
    ]
    (tmp_path / "goalstep.json").write_text(json.dumps({"videos": [{"video_uid": "a", "segments": steps}]}))
    told = [{"timestamp": t, "text": "C opens the lid.", "ego_visible": True} for t in (1.0, 2.0)]
    (tmp_path / "atomic.json").write_text(
        json.dumps({"annotations": {"b": [{"rejected": False, "descriptions": told}]}})
    )
    videos = {"videos": str(clips / "videos")}
    goalstep = {"kind": "goalstep", "annotations": str(tmp_path / "goalstep.json"), **videos}
    egoexo = {"kind": "egoexo_atomic", "annotations": str(tmp_path / "atomic.json"), **videos}
    names = {"goalstep_narration": goalstep, "egoexo_narration": egoexo}
    tasks = [{"task": name + end, "data": data} for name, data in names.items() for end in ("", "_rollout")]
    record = run(configured(checkpoint, tasks=tasks))
    assert [(t["evaluator"], t["n_items"]) for t in record["tasks"].values()] == [("stream", 1), ("rollout", 1)] * 2


def test_due_replies_stand_at_the_frame_before_them(eval_config):
    config = parse(EvalConfig, {"model": "m", "data": eval_config["data"]}, "test")
    first = task_sets(config)[0].samples[0]
    assert due_replies(first) == [[0, "C cuts the bread."], [3, "C opens the lid."]]


def test_a_task_of_one_s_own(checkpoint, coin, tmp_path):
    (tmp_path / "lengths_of_mine.py").write_text(
        "def make(task, data, samples, tolerances):\n"
        "    return lambda sample, raw: {'strict': {'words': (float(len(raw['answers'][0].split())), 1.0)}}\n"
    )
    (tmp_path / "lengths.yaml").write_text(
        "# How long answers are.\ntask: lengths\nabout: words\nkinds: [coin]\ndata: {task: step}\nevaluator: generate\n"
        "scores: lengths_of_mine:make\nprimary: strict/words\n"
    )
    record = run(configured(checkpoint, data=coin, tasks=["lengths"], include_path=[str(tmp_path)]))
    assert record["tasks"]["lengths"]["rows"]["model"]["strict"]["words"]["items"] == 5
