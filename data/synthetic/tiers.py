"""Make a tier of the synthetic data set: plan, render and encode clips in parallel, then write the annotations.

Finished clips are kept, so an interrupted run goes on where it stopped.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vtskip.data.files import read_json, write_json
from vtskip.data.synthetic.bayes import recipe_of
from vtskip.data.synthetic.encode import content_hash, join_videos, write_video
from vtskip.data.synthetic.export import write_coin, write_ego4d
from vtskip.data.synthetic.export_ego import groups_of, join, write_egoexo, write_goalstep, write_lta
from vtskip.data.synthetic.grammars import GRAMMARS, Grammar
from vtskip.data.synthetic.holdout import Rules
from vtskip.data.synthetic.levels import DEFAULT, LEVELS
from vtskip.data.synthetic.plan import DRAWN, Plan, Thing
from vtskip.data.synthetic.relevance import write_relevance
from vtskip.data.synthetic.render import Renderer
from vtskip.data.synthetic.things import RADIUS
from vtskip.errors import ConfigError, DataError, nearest

EVERY, PLACE = 8, 5  # one of so many clips has another frame rate, and which
LAST = "ego4d/fho_lta_taxonomy.json"  # written after all other annotations; a set of an earlier version lacks it


@dataclass(frozen=True)
class Tier:
    """Clip counts per split, clip length in seconds, frame size in pixels, and the grammar unless another is asked for.

    ``rates``: frames per second that one clip in ``EVERY`` has, in turn; all others have ten.
    """

    train: int
    val: int
    test: int
    seconds: tuple[float, float]
    size: int = 160
    grammar: str = "table"
    rates: tuple[str, ...] = ()

    @property
    def clips(self) -> int:
        return self.train + self.val + self.test


RATES = ("30000/1001", "24000/1001", "25/2")
TIERS = {
    "smoke": Tier(train=8, val=2, test=2, seconds=(8, 12)),
    "small": Tier(train=96, val=8, test=16, seconds=(17, 20)),
    "full": Tier(train=560, val=80, test=160, seconds=(20, 40), grammar="tasks", rates=RATES),
    "tasks": Tier(train=80, val=12, test=28, seconds=(20, 40), grammar="tasks", rates=RATES),
}
HARD = "test_hard"  # list in splits.json: those test clips whose things show what they are only on small cards


def get_tier(name: str) -> Tier:
    if name not in TIERS:
        raise ConfigError(f"unknown tier {name!r}{nearest(name, TIERS)}; accepted: {', '.join(TIERS)}")
    return TIERS[name]


@dataclass(frozen=True)
class Order:
    """What is to be made: a tier by its name, at a redundancy level, perhaps with a compositional hold-out or another grammar.

    With a hold-out training and validation clips lack the held-out combinations, and test clips have nothing else. Raises
    ConfigError for an unknown name and a negative seed.
    """

    tier: str
    seed: int = 0
    level: str = DEFAULT
    holdout: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        get_tier(self.tier)
        if self.grammar is not None and self.grammar not in GRAMMARS:
            hint = f"{nearest(self.grammar, GRAMMARS)}; accepted: {', '.join(GRAMMARS)}"
            raise ConfigError(f"unknown grammar {self.grammar!r}{hint}")
        Rules(self.holdout)
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}: accepted are 0 and larger")
        if self.level not in LEVELS:
            hint = f"{nearest(self.level, LEVELS)}; accepted: {', '.join(LEVELS)}"
            raise ConfigError(f"unknown redundancy level {self.level!r}{hint}")

    @property
    def spec(self) -> Tier:
        return TIERS[self.tier]

    @property
    def words(self) -> Grammar:
        return GRAMMARS[self.grammar or self.spec.grammar]

    @property
    def recipe(self) -> dict[str, Any]:
        """What a folder is recognised by; options left at their defaults are not in it."""
        spec = asdict(self.spec)
        usual, rates = spec.pop("grammar"), spec.pop("rates")
        grammar = self.grammar or usual
        recipe = {"version": self.words.version, "tier": self.tier, "seed": self.seed, **spec}
        recipe["seconds"] = list(self.spec.seconds)
        recipe |= {"rates": list(rates)} if rates else {}
        changed = {"grammar": grammar} if grammar != "table" else {}
        changed |= {"level": self.level} if self.level != DEFAULT else {}
        return recipe | changed | ({"holdout": self.holdout} if self.holdout else {})

    @property
    def splits(self) -> dict[str, list[str]]:
        return splits_of(self.tier, self.spec)

    @property
    def lists(self) -> dict[str, list[str]]:
        """``splits``, and the list of hard test clips where there are any."""
        first = self.spec.train + self.spec.val
        hard = [uid for n, uid in enumerate(self.splits["test"], first) if self.words.hard(self._seed(n))]
        return self.splits | ({HARD: hard} if hard else {})

    def rules(self, unseen: bool) -> Rules:
        return Rules(self.holdout, unseen)

    def plan(self, number: int) -> Plan:
        """The plan of a clip by its number over all splits."""
        rules = self.rules(unseen=number >= self.spec.train + self.spec.val)
        plan = self.words.plan(f"{self.tier}-{number:04d}", self._seed(number), self.spec.seconds, int(DRAWN), rules)
        rates = self.spec.rates
        return plan.at(Fraction(rates[number // EVERY % len(rates)])) if rates and number % EVERY == PLACE else plan

    def _seed(self, number: int) -> tuple[int, ...]:
        return self.seed, list(TIERS).index(self.tier), number


def _clip(order: Order, number: int, out: Path) -> None:
    """One clip: the video, its relevant areas, then its timeline as the sign that it is complete."""
    plan, level, size = order.plan(number), LEVELS[order.level], order.spec.size
    video = out / "videos" / f"{plan.uid}.mp4"
    write_video(video, Renderer(plan, size, level).frames(), plan.rate, crf=level.crf)
    write_relevance(_areas(out, plan.uid), plan, level)
    write_json(
        out / "timelines" / f"{plan.uid}.json",
        {
            "recipe": order.recipe,
            "uid": plan.uid,
            "seed": list(plan.seed),
            "fps": str(plan.rate),
            "frames": plan.frames,
            "size": size,
            "hash": content_hash(video),
            "steps": _steps(plan),
            **order.words.facts(plan),
        },
    )


def _areas(out: Path, uid: str) -> Path:
    return out / "relevance" / f"{uid}.json"


def _steps(plan: Plan) -> list[dict[str, Any]]:
    rows = []
    for step in plan.steps:
        moments = {key: value for key, value in asdict(step).items() if key in ("approach", "contact", "end", "away")}
        words = {key: value for key, value in asdict(step.action).items() if value}
        row = {**words, **moments, "box": _box(plan.things[step.thing])}
        rows.append(row if step.into is None else row | {"into_box": _box(plan.things[step.into])})
    return rows


def _box(thing: Thing) -> list[float]:
    r = RADIUS * thing.scale
    return [round(v, 4) for v in (thing.x - r, thing.y - r, thing.x + r, thing.y + r)]


def _finished(out: Path, uid: str, recipe: dict[str, Any]) -> bool:
    timeline = out / "timelines" / f"{uid}.json"
    if not timeline.is_file() or not (out / "videos" / f"{uid}.mp4").is_file():
        return False
    try:
        return json.loads(timeline.read_text(encoding="utf-8"))["recipe"] == recipe
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def _progress(show: bool, total: int, done: int) -> Iterator[Any]:
    from rich import progress as parts
    from rich.console import Console

    columns = (
        parts.TextColumn("making clips"),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(),
        parts.TimeRemainingColumn(),
    )
    with parts.Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("clips", total=total, completed=done)
        yield lambda: bar.advance(task)


def splits_of(name: str, tier: Tier) -> dict[str, list[str]]:
    """Clip ids per split."""
    uids = [f"{name}-{number:04d}" for number in range(tier.clips)]
    return {
        "train": uids[: tier.train],
        "val": uids[tier.train : tier.train + tier.val],
        "test": uids[tier.train + tier.val :],
    }


def make(
    tier: str,
    out: str | Path,
    seed: int = 0,
    progress: bool = True,
    workers: int | None = None,
    level: str = DEFAULT,
    holdout: str | None = None,
    grammar: str | None = None,
) -> Path:
    """Write the tier to ``out`` and return that folder; does nothing where it is already complete.

    Holds ``videos/*.mp4``, ``coin/``, ``ego4d/``, ``egoexo/``, ``relevance/``, ``timelines/``, ``splits.json`` and
    ``manifest.json`` (seed, sizes and the hash of every clip's decoded frames). ``workers`` processes, by default one per
    core. ``level``: of redundancy, see ``levels``; ``holdout``: see ``holdout``; ``grammar``: see ``grammars``. Raises
    ConfigError for an unknown name and for a folder that holds another set.
    """
    order, out = Order(tier, seed, level, holdout, grammar), Path(out)
    try:
        return _make(order, out, progress, workers)
    except OSError as e:
        raise DataError(f"{e.filename or out}: the data set cannot be written ({e.strerror or e})") from None


def _make(order: Order, out: Path, progress: bool, workers: int | None) -> Path:
    recipe, splits = order.recipe, order.splits
    manifest = out / "manifest.json"
    held = recipe_of(manifest) if manifest.is_file() else None
    if held not in (None, recipe):
        raise ConfigError(f"{out}: holds other synthetic data ({held}); choose another folder or remove it")
    uids = [uid for names in splits.values() for uid in names]
    jobs = [(order, i, out) for i, uid in enumerate(uids) if not _finished(out, uid, recipe)]
    if held and not jobs and (out / LAST).is_file():
        return out
    with _progress(progress, len(uids), len(uids) - len(jobs)) as advance:
        _run(jobs, min(workers or os.cpu_count() or 1, len(jobs)), advance)
    timelines = [read_json(out / "timelines" / f"{uid}.json") for uid in uids]
    write_coin(out / "coin", timelines, splits)
    write_ego4d(out / "ego4d", timelines)
    _write_others(out, order, timelines)
    write_json(out / "splits.json", order.lists)
    clips = {t["uid"]: {"frames": t["frames"], "fps": t["fps"], "sha256": t["hash"]} for t in timelines}
    write_json(manifest, {"recipe": recipe, "clips": clips})
    return out


def _write_others(out: Path, order: Order, timelines: list[dict[str, Any]]) -> None:
    """GoalStep, Ego-Exo4D, LTA over the joined clips of ``ego4d/long``, and areas where an earlier version wrote none."""
    splits, fidgets = order.splits, {}
    for number in range(len(timelines)):
        plan = order.plan(number)
        fidgets[plan.uid] = plan.fidgets
        if not _areas(out, plan.uid).is_file():
            write_relevance(_areas(out, plan.uid), plan, LEVELS[order.level])
    write_goalstep(out / "ego4d", timelines, splits, fidgets)
    write_egoexo(out / "egoexo", timelines, splits)
    joined = {}
    for split, uids in splits.items():
        groups = groups_of([t for t in timelines if t["uid"] in set(uids)])
        joined[split] = [join(group, f"{split}-{number:03d}") for number, group in enumerate(groups)]
        for line in joined[split]:
            parts = [out / "videos" / f"{uid}.mp4" for uid in line["parts"]]
            join_videos(out / "ego4d" / "long" / f"{line['uid']}.mp4", parts)
    write_lta(out / "ego4d", joined)


def _run(jobs: list[tuple], workers: int, advance: Any) -> None:
    if workers <= 1:
        for job in jobs:
            _clip(*job)
            advance()
        return
    # fork: a child of a script without an "if __name__ == '__main__'" guard must not run the script again
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    # Ctrl-C reaches every process of a terminal: one that it ends while it holds a lock of the pool would make all wait.
    with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            for done in as_completed([pool.submit(_clip, *job) for job in jobs]):
                done.result()
                advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # stop at the first fault or at Ctrl-C; finished clips stay
            raise
