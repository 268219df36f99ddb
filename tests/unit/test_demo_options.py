"""``--kafka`` alone, with a broker, and with what is none."""

import pytest

from tidemill.cli.demo import OWN_BROKER
from tidemill.cli.main import declare


@pytest.mark.parametrize(
    ("arguments", "kafka"),
    [
        (["demo"], None),
        (["demo", "--kafka"], OWN_BROKER),
        (["demo", "--kafka", "--json=/tmp/a:b.json"], OWN_BROKER),
        (["demo", "adult", "--kafka", "localhost:9092"], "localhost:9092"),
    ],
)
def test_where_the_demo_is_played(arguments: list[str], kafka: str | None) -> None:
    parser, _ = declare()
    assert parser.parse_args(arguments).kafka == kafka


@pytest.mark.parametrize("value", ["--kafka=", "--kafka=localhost", "--kafka=:9092"])
def test_what_is_no_broker_is_told(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser, _ = declare()
    with pytest.raises(SystemExit):
        parser.parse_args(["demo", value])
    assert "HOST:PORT" in capsys.readouterr().err
