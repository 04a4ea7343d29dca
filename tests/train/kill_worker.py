"""Starts a run again and again in forked processes that kill themselves where the settings say, and once to the end.

Forked before anything has run, so that torch is imported once. Settings: a JSON file with ``config``, ``kills`` (a list of
``[step, place]``) and ``report``; places: ``step`` (after its backward pass), ``save`` (files are written, not published),
``publish`` (it has its name, older ones are not removed yet).
"""

import json
import os
import signal
import sys
from pathlib import Path

import vtskip.data  # noqa: F401
from tests.train.runs import train
from vtskip.train import build, checkpoints, loop, setup  # noqa: F401  all that a run imports


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(step, place):
    """Have this process die at ``step``, or in the first save from there on."""
    original = loop.RunTrainer.training_step

    def training_step(self, *args):
        loss = original(self, *args)
        if self.state.global_step + 1 >= step:
            if place == "step":
                die()
            if place == "save":
                loop.save_state = die
            if place == "publish":
                checkpoints.sync_folder = lambda folder: die() if (folder / f"checkpoint-{step}").exists() else None
        return loss

    loop.RunTrainer.training_step = training_step


settings = json.loads(Path(sys.argv[1]).read_text())
ends = []
for kill in [*settings["kills"], None]:
    child = os.fork()
    if child == 0:
        if kill:
            arm(*kill)
        train(settings["config"], "auto")
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
Path(settings["report"]).write_text(json.dumps(ends))
