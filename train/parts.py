"""Which part of a model a parameter belongs to, which parameters a pattern names, and which of them learn at what rate."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vtskip.errors import ConfigError, nearest
from vtskip.models.streaming_llava import METHOD_KEY
from vtskip.train.sections import Optim, Trains

PARTS = ("vision", "connector", "lm", "router")
# Names of modules, over all supported families. What is in none of them joins the two (``image_newline``, ``projector``).
JOINTS = {"merger", "merger_list", "deepstack_merger_list", "multi_modal_projector", "connector", "projector"}
TOWERS = {"vision_tower", "visual", "vision_model", "image_tower", "video_tower", "vision_embed_tokens"}
TEXT = {"language_model", "text_model", "lm_head", "layers", "embed_tokens", "norm"}
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
INNER = ("base_layer", "original_module")


def plain(name: str) -> str:
    """A parameter's name in the model itself, without what PEFT, DDP, FSDP and ``torch.compile`` put around it."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return ".".join(part for part in name.split(".") if part not in INNER)


def part_of(name: str) -> str:
    """``vision``, ``connector``, ``lm`` or ``router``."""
    name = plain(name)
    if METHOD_KEY in f".{name}":
        return "router"
    pieces = name.split(".")
    if JOINTS.intersection(pieces):
        return "connector"
    for piece in pieces:
        if piece in TOWERS or piece in TEXT:
            return "vision" if piece in TOWERS else "lm"
    return "connector"


def matching(pattern: str, names: Iterable[str], key: str) -> list[str]:
    """The names that ``pattern`` (``*`` and ``?``) matches. Raises ConfigError, with the nearest names, if there is none."""
    names = list(names)
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(f"{key} {pattern!r}: no such name{_near(pattern, names)}")
    return found


def _near(pattern: str, names: list[str]) -> str:
    """The nearest name of a model's part, else that of the first piece of the pattern that occurs nowhere."""
    if pattern in names:
        return ""
    pieces = {piece for name in names for piece in name.split(".") if not piece.isdigit()}
    for piece in pattern.split("."):
        word = piece.strip("*?")
        if word and word not in pieces and not any(fnmatchcase(known, piece) for known in pieces):
            return nearest(word, [*PARTS, *sorted(pieces)]) or _some(names)
    return nearest(pattern, names) or _some(names)


def _some(names: list[str]) -> str:
    shown = names if len(names) <= 4 else [*names[:2], "...", *names[-2:]]
    return f"; names: {', '.join(shown) or 'none'}"


def choose_trained(model: nn.Module, trains: Trains) -> None:
    """Freeze what does not learn. Raises ConfigError where a pattern names nothing.

    What the model itself keeps frozen stays so unless ``trains.names`` has it.
    """
    chosen = {part: getattr(trains, part) is not False for part in PARTS}
    named = {plain(name): parameter for name, parameter in model.named_parameters()}
    more = {name for pattern in trains.names for name in matching(pattern, named, "trains.names")}
    less = {name for pattern in trains.frozen for name in matching(pattern, named, "trains.frozen")}
    for name, parameter in named.items():
        if name in more and name not in less:
            parameter.requires_grad_(True)
        elif name in less or not chosen[part_of(name)]:
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and by decay: matrices decay, biases, norms, embeddings and routers do not.

    Raises ConfigError for a key of ``optim.lrs`` that names nothing that learns.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rates = learning_rates([*trained], optim)
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        part = part_of(name)
        decays = parameter.ndim > 1 and id(parameter) not in tables and "embed" not in name.rpartition(".")[2]
        groups.setdefault((part, rates[name], decays and part != "router"), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": optim.weight_decay if decays else 0.0}
        for (_, rate, decays), parameters in groups.items()
    ]


def learning_rates(names: list[str], optim: Optim) -> Mapping[str, float]:
    """Name -> learning rate, for the names of what learns."""
    own = {name: plain(name) for name in names}
    parts = {part_of(name) for name in names}
    patterns = {key: set(matching(key, own.values(), "optim.lrs")) for key in optim.lrs if key not in PARTS}
    if absent := [key for key in optim.lrs if key in PARTS and key not in parts]:
        raise ConfigError(
            f"optim.lrs {absent[0]!r}: no parameter of this part learns; those that do: {', '.join(sorted(parts))}"
        )

    def rate(name: str) -> float:
        first = next((key for key, matched in patterns.items() if own[name] in matched), part_of(name))
        return optim.lrs.get(first, optim.lr)

    return {name: rate(name) for name in names}
