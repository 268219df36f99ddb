"""What a foreign writer may put into a message must fit into a table's column, or be refused where it is read."""

import msgspec
import pytest

from tidemill.messages import Prediction

ANSWER = '{"request_id":"a","prediction":1,"version":%d,"bundle":"b","requested_at":1,"predicted_at":2}'


@pytest.mark.parametrize("version", [2**63, -(2**63) - 1, 10**25])
def test_a_whole_number_that_no_column_holds_is_refused(version: int) -> None:
    """JSON's numbers know no end; the recorder's Int64 does."""
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode((ANSWER % version).encode(), type=Prediction)


def test_the_largest_one_is_taken() -> None:
    """Exactly."""
    assert msgspec.json.decode((ANSWER % (2**63 - 1)).encode(), type=Prediction).version == 2**63 - 1
