"""Fixtures of more than one folder: a real Kafka broker, started only where a selected test asks for it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

import pytest

from tidemill.errors import TidemillError
from tidemill.testing.kafka_broker import KafkaBroker, jars, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: at the end no worker is to be left alone with it."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


class RunningBroker(NamedTuple):
    """A broker that others started, by TIDEMILL_TEST_KAFKA."""

    bootstrap: str


@pytest.fixture(scope="session")
def kafka_possible() -> None:
    """A broker can run here; where none can, tests are skipped, but under CI they fail: a skip there would go unseen."""
    reason = missing()
    try:
        if reason is None:
            jars()
    except TidemillError as error:
        reason = str(error)
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no Kafka broker can run here: {reason}")


@pytest.fixture(scope="session")
def kafka_broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaBroker | RunningBroker]:
    """The session's one broker, which no test harms; TIDEMILL_TEST_KAFKA=host:port names one that runs already."""
    running = os.environ.get("TIDEMILL_TEST_KAFKA")
    if running:
        yield RunningBroker(running)
        return
    request.getfixturevalue("kafka_possible")
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def bootstrap(kafka_broker: KafkaBroker | RunningBroker) -> str:
    """The session's broker as ``host:port``."""
    return kafka_broker.bootstrap


@pytest.fixture(scope="module")
def new_broker(kafka_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., KafkaBroker]]:
    """``new_broker(settings=None, secure=False)`` starts one that the module may kill and pause; it ends with the module."""
    with ExitStack() as brokers:

        def start(settings: Mapping[str, str] | None = None, secure: bool = False) -> KafkaBroker:
            folder = tmp_path_factory.mktemp("broker")
            return brokers.enter_context(KafkaBroker(folder, settings=settings, secure=secure))

        yield start


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str, list[float], float], None]:
    """Prints figures, whether or not output is captured, and holds them against their limit: half of them keep it, and none
    takes twice as long, for on a machine that others use any one may wait.
    """

    def tell(what: str, seconds: list[float], limit: float) -> None:
        with capsys.disabled():
            print(f"\n{what}: {' '.join(f'{one:.2f}' for one in seconds)} s; limit {limit:g} s", flush=True)
        assert median(seconds) < limit
        assert max(seconds) < 2 * limit

    return tell
