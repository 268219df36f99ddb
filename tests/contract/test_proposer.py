"""Every proposer against the contract."""

from collections.abc import Callable

import pytest

from tidemill.core.space import Space
from tidemill.testing.proposer_contract import ProposerContract
from tidemill.tuning.base import Proposer
from tidemill.tuning.optuna import OptunaProposer


class TestOptuna(ProposerContract):
    @pytest.fixture
    def propose(self) -> Callable[[Space, int], Proposer]:
        return OptunaProposer
