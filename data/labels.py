"""Readable names of labels, by VideoLLM-online's rules (arXiv 2406.11816): COIN's tasks and steps, Ego4D's verbs and nouns."""

# After every capital letter became a space and a small letter; in this order.
_ACRONYMS = ((" t v", " TV"), (" c d", " CD"), ("s i m", "SIM"), ("n b a", "NBA"), ("s s d", "SSD"), ("r j45", "RJ45"))
_STEPS = {
    "process (crop, fold) paper": "crop and fold paper",
    "try to press gun head, spray residual old grease": "try to press gun head to spray residual old grease",
}
_WORDS = {  # classes whose words before the bracket are alike
    "pot_(planter)": "flowerpot",
    "bat_(sports)": "sport bat",
    "bat_(tool)": "bat",
    "nut_(food)": "nuts",
    "nut_(tool)": "nut",
    "chip_(food)": "snack",
    "chip_(wood'_metal),": "chips",
    "chip_(wood,_metal)": "chip",
}


def task_words(name: str) -> str:
    """``ReplaceCDDriveWithSSD`` -> ``replace CD drive with SSD``."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name)
    for spelled, acronym in _ACRONYMS:
        words = words.replace(spelled, acronym)
    return words.strip()


def step_words(label: str) -> str:
    """COIN's step label, with two of them put in other words."""
    return _STEPS.get(label, label)


def class_words(name: str) -> str:
    """``cut_(trim,_slice,_chop)`` -> ``cut``; where two classes would read the same, one has another word."""
    return _WORDS.get(name, name.partition("(")[0].removesuffix("_" if "(" in name else "").replace("_", " "))
