"""What makes two trials comparable, and what tells them apart where they are not."""

import hashlib

import msgspec
from msgspec import structs

from tidemill.messages import Conditions

WORDS = {
    "metric": "another metric",
    "task": "another task",
    "folds": "another number of folds",
    "split": "other folds",
    "unbalanced": "other class weights",
    "schema": "another schema",
    "features": "other features",
    "training_set": "other training rows",
    "rows": "other training rows",
    "seed": "another seed",
    "rounds_max": "another limit of rounds",
    "patience": "another patience",
}


def digest(conditions: Conditions) -> str:
    """SHA-256 as hexadecimal text. Which learner it was is not among them: learners are compared."""
    return hashlib.sha256(msgspec.json.encode(conditions)).hexdigest()


def differences(ours: Conditions, theirs: Conditions | None) -> list[str]:
    """Why trials made under one cannot be compared with trials made under the other; empty where they can."""
    if theirs is None:
        return ["its conditions were not recorded"]
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in structs.asdict(ours)]
    return list(dict.fromkeys(WORDS[name] for name, our, their in pairs if our != their))
