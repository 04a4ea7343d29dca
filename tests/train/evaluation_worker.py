"""One process of a run with task scores. Run by torchrun with a JSON file that holds the configuration."""

import json
import sys
from pathlib import Path

from tests.train.runs import train

train(json.loads(Path(sys.argv[1]).read_text()))
