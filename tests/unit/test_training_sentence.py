"""What ``tidemill train`` says at its end."""

from tidemill.cli.training import sentence
from tidemill.messages import JournalEntry

STATISTIC = {"rows": 1000.0, "challenger_score": 0.3083, "champion_score": 0.293}


def entry(verdict: str, **more: object) -> JournalEntry:
    made = {"experiment": "e1", "version": 6, "champion_version": 5, "metric": "log_loss", "score": 0.29, "rows": 5000}
    return JournalEntry("e1", "experiment", "asked", verdict, 0, **{**made, **more})  # type: ignore[arg-type]


def test_who_serves_is_said_first() -> None:
    """The new one, with what it is; or the champion that stays, with both figures where they were compared."""
    assert sentence(entry("promoted", rounds=40, bundle="b" * 64)) == (
        "version 6 promoted: log_loss 0.29000 by cross-validation, 40 rounds on 5,000 rows, bundle bbbbbbbbbbbb"
    )
    assert sentence(entry("kept", statistic=STATISTIC)) == (
        "experiment e1: the champion, version 5, stays: its log_loss is 0.293, the new model's 0.3083"
        " on the newest 1,000 observations"
    )
    assert sentence(entry("kept", version=0, detail="a person has decided meanwhile")) == (
        "experiment e1: the champion stays, a person has decided meanwhile"
    )
    assert sentence(entry("failed", detail="too little data")) == "experiment e1 failed: too little data"
