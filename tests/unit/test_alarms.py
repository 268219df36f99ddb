"""One alarm for what has shifted, and at most so many false ones a month."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import Struct

from tidemill.core.alarms import (
    ALPHA_MAX,
    CLEAR_LOOKS,
    LOOKS_MIN,
    MONTH_MS,
    SHARES,
    TOLD,
    Alarm,
    Change,
    Finding,
    Kind,
    Limits,
    Watch,
    alpha_of,
    evidence,
    look,
    passing,
)

HOUR_MS = 3_600_000
LIMITS = Limits()
few = settings(max_examples=30, deadline=None)
kinds: st.SearchStrategy[Kind] = st.sampled_from(["feature", "prediction", "outcome", "calibration", "error"])
a_finding = st.builds(
    Finding,
    name=st.sampled_from("abcdef"),
    kind=kinds,
    p=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-300, 1e-9, 1e-4])),
    effect=st.floats(-1, 1),
    importance=st.floats(0, 1),
    text=st.just("moved"),
    known=st.booleans(),
)


def one(name: str = "x", kind: Kind = "prediction", p: float = 0.0, effect: float = 0.5, importance: float = 1.0) -> Finding:
    return Finding(name, kind, p, effect, importance, f"{name} moved")


# -- the budget


@few
@given(per_month=st.floats(0.01, 1000), looks=st.integers(0, 10**6), span_ms=st.integers(-(10**6), 10**12))
def test_a_month_of_looks_does_not_exceed_the_budget(per_month: float, looks: int, span_ms: int) -> None:
    """At the pace they were made; a look's part is a chance, and never more than one in twenty."""
    alpha = alpha_of(Limits(per_month=per_month), looks, span_ms)
    a_month = looks * MONTH_MS / span_ms if span_ms > 0 else 0
    assert alpha * max(a_month, LOOKS_MIN) <= per_month * (1 + 1e-9)
    assert 0 < alpha <= ALPHA_MAX


@pytest.mark.parametrize(
    ("per_month", "looks", "span_ms", "alpha"),
    [
        (1.0, 0, 0, 1 / LOOKS_MIN),  # the first look: its pace is not known
        (1.0, 1, MONTH_MS, 1 / LOOKS_MIN),  # one a month has not all of it
        (1.0, 100, MONTH_MS, 1 / 100),
        (1.0, 100, MONTH_MS // 10, 1 / 1000),
        (1.0, 5, -HOUR_MS, 1 / LOOKS_MIN),  # time that went back says nothing
        (0.5, 100, MONTH_MS, 1 / 200),
        (100.0, 100, MONTH_MS, ALPHA_MAX),
    ],
)
def test_the_budget_is_shared_out_over_the_looks_of_a_month(
    per_month: float, looks: int, span_ms: int, alpha: float
) -> None:
    """Thirty at least, and a look never has more than one in twenty."""
    assert alpha_of(Limits(per_month=per_month), looks, span_ms) == pytest.approx(alpha)


def test_half_is_for_what_is_known_when_a_window_was_served() -> None:
    """And half for what its outcomes tell; together all."""
    assert SHARES["feature"] + SHARES["prediction"] == pytest.approx(0.5)
    assert SHARES["outcome"] + SHARES["calibration"] + SHARES["error"] == pytest.approx(0.5)


@few
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=30), st.floats(1e-3, ALPHA_MAX))
def test_the_parts_of_all_findings_add_up_to_the_looks(weights: list[float], alpha: float) -> None:
    """So that a false one among independent findings has at most the look's chance, however many features there are: the
    largest p with which each passes alone, added up.
    """
    shares = [weight / sum(weights) for weight in weights]
    lenient = Limits(effect_min=0.0)
    others: list[Kind] = ["prediction", "outcome", "calibration", "error"]
    findings = [one(f"f{i}", "feature", importance=share) for i, share in enumerate(shares)] + [one(k, k) for k in others]

    def passes(at: int, p: float) -> bool:
        tried = [msgspec.structs.replace(other, p=p if i == at else 1.0) for i, other in enumerate(findings)]
        return bool(passing(tried, alpha, lenient))

    total = 0.0
    for at in range(len(findings)):
        low, high = 0.0, 1.0
        for _ in range(22):
            middle = (low + high) / 2
            low, high = (middle, high) if passes(at, middle) else (low, middle)
        total += low
    assert total == pytest.approx(alpha, rel=1e-3, abs=1e-5)


def test_a_false_alarm_is_as_seldom_as_was_asked() -> None:
    """Of 4,000 looks at 24 uniform p with an alpha of 0.05: within three standard deviations of 0.05, and never more often
    than was asked beyond chance. No effect is asked for, so that p alone decides.
    """
    rng, raised, lenient = np.random.default_rng(0), 0, Limits(effect_min=0.0)
    for ps in rng.random((4000, 24)):
        findings = [one(f"f{i}", "feature", p, 0.5, 0.05) for i, p in enumerate(ps[:20])]
        others: list[Kind] = ["prediction", "outcome", "calibration", "error"]
        findings += [one(kind, kind, p) for kind, p in zip(others, ps[20:], strict=True)]
        raised += bool(passing(findings, 0.05, lenient))
    assert abs(raised / 4000 - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 4000)


# -- what passes


@few
@given(findings=st.lists(a_finding, max_size=12), alpha=st.floats(0, ALPHA_MAX), effect_min=st.floats(0, 1))
def test_what_passes_against_a_slow_twin(findings: list[Finding], alpha: float, effect_min: float) -> None:
    """Not what is known; each within its part of alpha; by its own effect, a feature only with half of an average one's
    importance, or all features by their costs together. Outcomes' findings, features, predictions, the costliest of each
    first. Where something matters, all features that moved are told.
    """
    features = [finding for finding in findings if finding.kind == "feature"]
    alone, together = [], []
    important = False
    for finding in findings:
        part = SHARES[finding.kind]
        if finding.kind == "feature":
            part *= (finding.importance + 1 / len(features)) / 2
        if finding.known or finding.p > alpha * part:
            continue
        if finding.kind == "feature":
            together.append(finding)
            important |= abs(finding.effect) >= effect_min and finding.importance >= 0.5 / len(features)
        elif finding.effect >= effect_min or (finding.kind != "error" and -finding.effect >= effect_min):
            alone.append(finding)
    matters = bool(alone) or important or sum(finding.cost for finding in together) >= effect_min
    found = passing(findings, alpha, Limits(effect_min=effect_min))
    expected = alone + together if matters else []
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    groups: list[list[Kind]] = [["error", "calibration", "outcome"], ["feature"], ["prediction"]]
    costs = [[-finding.cost for finding in expected if finding.kind in group] for group in groups]
    assert [-finding.cost for finding in found] == [cost for group in costs for cost in sorted(group)]
    assert [[finding.kind in group for group in groups].index(True) for finding in found] == [
        at for at, group in enumerate(costs) for _ in group
    ]


def test_causes_come_before_what_follows_from_them() -> None:
    """What outcomes tell, then features, then predictions, however much each may cost."""
    findings = [
        one("prediction", "prediction", effect=0.9),
        one("minor", "feature", effect=0.5, importance=0.3),
        one("major", "feature", effect=0.5, importance=0.7),
        one("outcome", "outcome", effect=-0.3),
        one("error", "error", effect=0.25),
        one("calibration", "calibration", effect=0.4),
    ]
    expected = ["calibration", "outcome", "error", "major", "minor", "prediction"]
    assert [finding.name for finding in passing(findings, 0.05, LIMITS)] == expected
    assert [finding.name for finding in passing(findings[::-1], 0.05, LIMITS)] == expected


@few
@given(findings=st.lists(a_finding, max_size=12), alphas=st.tuples(st.floats(0, ALPHA_MAX), st.floats(0, ALPHA_MAX)))
def test_a_larger_budget_never_hides_a_finding(findings: list[Finding], alphas: tuple[float, float]) -> None:
    """Nor does the order in which they are given."""
    small, large = (list(map(repr, passing(findings, alpha, LIMITS))) for alpha in sorted(alphas))
    assert all(small.count(finding) <= large.count(finding) for finding in small)
    assert sorted(map(repr, passing(findings[::-1], max(alphas), LIMITS))) == sorted(large)


@pytest.mark.parametrize(
    ("finding", "passes"),
    [
        (one(effect=0.2), True),
        (one(effect=0.19), False),
        (one(effect=-0.2), True),
        (one(kind="error", effect=0.2), True),
        (one(kind="error", effect=-0.9), False),  # fewer errors
        (one(kind="calibration", effect=-0.3), True),
        (one(kind="feature", effect=0.9, importance=0.2), False),
        (one(kind="feature", effect=0.9, importance=0.5), True),
        (one(p=0.001), True),
        (one(p=0.02), False),
        (msgspec.structs.replace(one(), known=True), False),
        (one(p=float("nan")), False),
        (one(effect=float("nan")), False),
    ],
)
def test_a_finding_alone(finding: Finding, passes: bool) -> None:
    """It must be seldom, and matter: an effect of 0.2, of a feature with half of the importance of an average one (here
    there is no other) or times its importance; an error must rise.
    """
    assert passing([finding], 0.05, LIMITS) == ([finding] if passes else [])


def test_features_matter_together() -> None:
    """Ten of twenty, that the model hardly uses, have moved by 0.9: none would be an alarm alone, nor nine of them."""
    rest = [one(f"rest{i}", "feature", p=1.0, effect=0.0, importance=0.076) for i in range(10)]
    findings = [one(f"f{i}", "feature", effect=0.9, importance=0.024) for i in range(10)]
    still = msgspec.structs.replace(findings[0], p=1.0)
    assert passing([*findings, *rest], 0.05, LIMITS) == findings
    assert passing([*findings[1:], still, *rest], 0.05, LIMITS) == []
    for finding in findings:
        assert passing([finding, *[still] * 9, *rest], 0.05, LIMITS) == []


@pytest.mark.parametrize(
    ("effect", "importance", "passes"),
    [
        (0.25, 0.2, True),  # its cost is 0.05
        (0.2, 0.1, True),
        (-0.2, 0.1, True),
        (0.19, 0.1, False),
        (0.2, 0.099, False),
        (0.9, 0.099, False),
        (1.0, 0.0, False),
        (0.19, 0.9, False),
    ],
)
def test_a_feature_that_the_model_uses_matters_alone(effect: float, importance: float, passes: bool) -> None:
    """One of five: by its effect, where it has half of an average feature's importance (a tenth); one that the model hardly
    uses is no alarm, however far it has moved.
    """
    moved = one("moved", "feature", effect=effect, importance=importance)
    rest = [one(f"f{i}", "feature", p=1.0, effect=0.0, importance=(1 - importance) / 4) for i in range(4)]
    assert passing([moved, *rest], 0.05, LIMITS) == ([moved] if passes else [])


def test_an_unimportant_feature_is_told_beside_what_matters() -> None:
    """It may be the cause; a prediction that has moved by less than matters is not."""
    minor = one("minor", "feature", effect=0.9, importance=0.05)
    rest = [one(f"f{i}", "feature", p=1.0, effect=0.0, importance=0.19) for i in range(4)]
    major, little = one("major", "feature", effect=0.2, importance=0.19), one(effect=0.1)
    assert passing([minor, *rest, major, little], 0.05, LIMITS) == [minor, major]
    assert passing([minor, *rest, one("error", "error"), little], 0.05, LIMITS) == [one("error", "error"), minor]
    assert passing([minor, *rest, little], 0.05, LIMITS) == []


def test_an_important_feature_has_more_of_the_budget() -> None:
    """Half is shared out alike, so that one without importance has a part as well."""
    findings = [one("much", "feature", 1e-3, 0.9, 0.9), one("none", "feature", 1e-3, 0.9, 0.0)]
    assert passing(findings, 0.01, LIMITS) == findings[:1]
    assert passing(findings, 0.05, LIMITS) == findings


def test_nothing_passes_where_nothing_was_found() -> None:
    """A look may have nothing to compare."""
    assert passing([], 0.05, LIMITS) == []


# -- raised and cleared


def test_the_life_of_an_alarm() -> None:
    """Raised by the first look at which something passes, kept up while it does, cleared after two looks without; its
    findings are the last that passed.
    """
    watch, changes = Watch(), []
    for number, passed in enumerate([[], [one("a")], [one("b")], [], [one("c")], [], [], []]):
        watch, change = look(watch, number, number * HOUR_MS, passed, LIMITS)
        changes.append(change)
    first, last = (Alarm("alarm-1", 1, HOUR_MS, [one(name)], ["prediction"]) for name in "ac")
    assert changes[:6] == [None, Change("alarm_raised", first), None, None, None, None]
    assert changes[6:] == [Change("alarm_cleared", last, "back to normal"), None]
    assert watch == Watch(None, 0, HOUR_MS)


def lived(*passed: list[Finding]) -> list[Change | None]:
    """What became of an alarm at looks an hour apart."""
    watch, changes = Watch(), []
    for number, found in enumerate(passed):
        watch, change = look(watch, number, number * HOUR_MS, found, LIMITS)
        changes.append(change)
    return changes


@pytest.mark.parametrize("kind", ["error", "calibration", "outcome"])
def test_an_alarm_worsens_once_when_outcomes_confirm_it(kind: Kind) -> None:
    """What was only a shift of requests and answers; any later finding of outcomes is no news, nor is one after a look at
    which nothing passed.
    """
    told, again = one(kind, kind), [one(other, other) for other in TOLD]
    changes = lived([one("f", "feature")], [one()], [told, one()], [told], again, [], again)
    assert [change and change.name for change in changes] == ["alarm_raised", None, "alarm_worsened", *[None] * 4]
    worse = Alarm("alarm-0", 0, 0, [told, one()], ["feature", "prediction", kind])
    assert changes[2] == Change("alarm_worsened", worse)


@pytest.mark.parametrize("kind", ["error", "calibration", "outcome"])
def test_an_alarm_that_outcomes_have_raised_does_not_worsen(kind: Kind) -> None:
    """Whatever joins it."""
    changes = lived([one(kind, kind), one()], [one()], [one(other, other) for other in TOLD], [one("f", "feature")])
    assert [change and change.name for change in changes] == ["alarm_raised", None, None, None]


def test_requests_and_answers_do_not_worsen_an_alarm() -> None:
    """Only outcomes do, as those of the next alarm may again."""
    changes = lived(
        [one()], [one("f", "feature"), one()], [one("error", "error")], [], [], *[[]] * 24, [one()], [one("error", "error")]
    )
    names = [change.name for change in changes if change]
    assert names == ["alarm_raised", "alarm_worsened", "alarm_cleared", "alarm_raised", "alarm_worsened"]
    assert changes[1] is None


def test_an_alarm_that_clears_does_not_worsen() -> None:
    """Who has acknowledged it, or has let it be for so long, is told that it has cleared, of all kinds there were."""
    watch, _ = look(Watch(), 0, 0, [one()], LIMITS)
    for at_ms, acknowledged in ((HOUR_MS, ["alarm-0"]), (LIMITS.known_ms, [])):
        after, change = look(watch, 1, at_ms, [one("error", "error")], LIMITS, acknowledged)
        assert change is not None
        assert (change.name, change.alarm.kinds) == ("alarm_cleared", ["prediction", "error"])
        assert after.alarm is None


@pytest.mark.parametrize(("hours", "raised"), [(3, False), (23, False), (24, True), (100, True)])
def test_between_two_alarms_there_is_the_cooldown(hours: int, raised: bool) -> None:
    """Counted from when the last was raised; what passes after it is a new alarm."""
    watch = Watch(None, 0, 5 * HOUR_MS)
    after, change = look(watch, 7, (5 + hours) * HOUR_MS, [one()], LIMITS)
    assert (change is not None) == raised
    assert (after == watch) != raised
    if change:
        assert (change.name, change.alarm.id, after.raised_at) == ("alarm_raised", "alarm-7", (5 + hours) * HOUR_MS)


def test_an_acknowledged_alarm_clears_and_is_accepted() -> None:
    """Also while it passes, and before anything else; another's acknowledgement says nothing."""
    watch, _ = look(Watch(), 3, 0, [one()], LIMITS)
    kept, change = look(watch, 4, HOUR_MS, [one()], LIMITS, {"alarm-2"})
    assert (kept, change) == (watch, None)
    after, change = look(replaced(watch, quiet=CLEAR_LOOKS), 4, HOUR_MS, [], LIMITS, {"alarm-3", "alarm-2"})
    assert after == Watch(None, 0, 0)
    assert change is not None
    assert (change.name, change.why, change.accept) == ("alarm_cleared", "acknowledged", True)


def replaced(watch: Watch, **values: Any) -> Watch:
    return msgspec.structs.replace(watch, **values)


def test_what_nobody_acknowledges_is_the_new_normal_in_the_end() -> None:
    """After ``known_ms`` that it was up, if it is up still; not if it has just gone back."""
    watch, _ = look(Watch(), 0, HOUR_MS, [one()], LIMITS)
    _, early = look(watch, 1, LIMITS.known_ms, [one()], LIMITS)
    after, late = look(watch, 1, LIMITS.known_ms + HOUR_MS, [one()], LIMITS)
    _, back = look(replaced(watch, quiet=1), 2, LIMITS.known_ms + HOUR_MS, [], LIMITS)
    assert early is None
    assert late is not None
    assert late.accept
    assert late.why.startswith("taken as the new normal")
    assert after.alarm is None
    assert back == Change("alarm_cleared", Alarm("alarm-0", 0, HOUR_MS, [one()], ["prediction"]), "back to normal")


def test_an_alarm_is_one_line() -> None:
    """The first three, and how many there are besides."""
    names = ["a", "b", "c", "d", "e"]
    assert Alarm("id", 0, 0, [one(name) for name in names]).text == "a moved; b moved; c moved, and 2 more"
    assert Alarm("id", 0, 0, [one("a")]).text == "a moved"


@few
@given(st.lists(a_finding, min_size=1, max_size=30))
def test_the_evidence_is_plain_values(findings: list[Finding]) -> None:
    """The same after JSON, the standard library's as well; twenty findings at most, the first."""
    alarm = Alarm("alarm-1", 1, 2, findings)
    told = evidence(alarm)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert msgspec.json.decode(msgspec.json.encode(told)) == told
    assert (told["alarm"], told["text"]) == ("alarm-1", alarm.text)
    assert [(found["name"], found["kind"]) for found in told["findings"]] == [
        (finding.name, finding.kind) for finding in findings[:20]
    ]
    for found, finding in zip(told["findings"], findings, strict=False):
        assert found["p"] == pytest.approx(finding.p, rel=1e-6, abs=1e-37)
        assert (found["effect"], found["cost"]) == (finding.effect, finding.cost)


def test_a_finding_of_numpy_makes_plain_evidence() -> None:
    """Where p and effect come from a computation."""
    told = evidence(Alarm("alarm-1", 1, 2, [one(p=float(np.float64(1e-200)), effect=float(np.float64(0.5)))]))
    assert json.loads(json.dumps(told))["findings"] == [
        {"name": "x", "kind": "prediction", "p": 1e-200, "effect": 0.5, "cost": 0.5}
    ]


# -- any life


class Step(Struct):
    """One look's input, and what came of it."""

    at_ms: int
    passed: list[Finding]
    acknowledged: list[str]
    change: Change | None


class AlarmMachine(RuleBasedStateMachine):
    """Looks at any pace, with anything passing, acknowledged at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(cooldown_ms=24 * HOUR_MS, known_ms=72 * HOUR_MS)
        self.watch = Watch()
        self.now = 0
        self.quiet = 0
        self.acknowledged: list[str] = []
        self.steps: list[Step] = []

    @rule(by=st.sampled_from([0, 1, 6, 23, 24, 30, 71, 200]))
    def time_passes(self, by: int) -> None:
        self.now += by * HOUR_MS

    @rule(passed=st.lists(st.builds(one, name=st.sampled_from("abc"), kind=kinds, effect=st.floats(0.2, 1)), max_size=3))
    def look(self, passed: list[Finding]) -> None:
        up = self.watch.alarm
        self.quiet = 0 if passed or up is None else self.quiet + 1
        self.watch, change = look(self.watch, len(self.steps), self.now, passed, self.limits, self.acknowledged)
        self.steps.append(Step(self.now, passed, list(self.acknowledged), change))
        if change and change.name == "alarm_cleared":
            assert up is not None
            self.reasoned(change, up)

    def reasoned(self, change: Change, up: Alarm) -> None:
        """It cleared for one of the three reasons."""
        asked, old = up.id in self.acknowledged, self.now - up.raised_at >= self.limits.known_ms
        assert change.accept == (asked or (old and self.quiet < CLEAR_LOOKS))
        assert asked or old or self.quiet >= CLEAR_LOOKS

    @rule()
    def acknowledge(self) -> None:
        if self.watch.alarm:
            self.acknowledged.append(self.watch.alarm.id)

    @rule()
    def stop_and_start(self) -> None:
        """The state is stored with the look, as JSON."""
        self.watch = msgspec.json.decode(msgspec.json.encode(self.watch), type=Watch)

    @invariant()
    def an_alarm_is_raised_and_cleared_in_turn(self) -> None:
        changes = [step.change for step in self.steps if step.change and step.change.name != "alarm_worsened"]
        assert [change.name for change in changes] == (["alarm_raised", "alarm_cleared"] * len(changes))[: len(changes)]
        assert [change.alarm.id for change in changes[1::2]] == [change.alarm.id for change in changes[:-1:2]]
        assert (self.watch.alarm is not None) == bool(len(changes) % 2)

    @invariant()
    def between_two_raises_lies_the_cooldown(self) -> None:
        raised = [step.at_ms for step in self.steps if step.change and step.change.name == "alarm_raised"]
        assert all(later - earlier >= self.limits.cooldown_ms for earlier, later in pairwise(raised))
        assert self.watch.raised_at == (raised[-1] if raised else None)

    @invariant()
    def an_alarm_worsens_with_the_first_that_outcomes_tell(self) -> None:
        """Once, unless outcomes have raised it; it keeps all kinds that it ever had."""
        if self.watch.alarm is None:
            return
        lived = self.steps[self.watch.alarm.look :]
        told = [any(finding.kind in TOLD for finding in step.passed) for step in lived]
        first = told.index(True) if True in told else 0
        worse = [step.change is not None and step.change.name == "alarm_worsened" for step in lived]
        assert [i for i, is_worse in enumerate(worse) if is_worse] == ([first] if first else [])
        assert self.watch.alarm.kinds == list(dict.fromkeys(one.kind for step in lived for one in step.passed))

    @invariant()
    def no_alarm_is_kept_that_should_have_cleared(self) -> None:
        alarm = self.watch.alarm
        if alarm is None or not self.steps:
            return
        last = self.steps[-1]
        assert alarm.id not in last.acknowledged
        assert last.at_ms - alarm.raised_at < self.limits.known_ms
        assert self.watch.quiet == self.quiet < CLEAR_LOOKS
        assert alarm.findings == next(step.passed for step in reversed(self.steps) if step.passed)

    def teardown(self) -> None:
        """The same looks, each state through JSON, do the same."""
        watch = Watch()
        for number, step in enumerate(self.steps):
            watch = msgspec.json.decode(msgspec.json.encode(watch), type=Watch)
            watch, change = look(watch, number, step.at_ms, step.passed, self.limits, step.acknowledged)
            assert change == step.change
        assert watch == self.watch


TestAlarms = AlarmMachine.TestCase
TestAlarms.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
