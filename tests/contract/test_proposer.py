"""Every proposer against the contract."""

from typing import ClassVar

import pytest

from tidemill import wiring
from tidemill.testing.proposer_contract import Propose, ProposerContract


class TestOptuna(ProposerContract):
    @pytest.fixture
    def propose(self) -> Propose:
        return wiring.optuna


class TestHyperopt(ProposerContract):
    @pytest.fixture
    def propose(self) -> Propose:
        return wiring.hyperopt


class TestSkopt(ProposerContract):
    @pytest.fixture
    def propose(self) -> Propose:
        return wiring.skopt


class TestSkoptForest(ProposerContract):
    @pytest.fixture
    def propose(self) -> Propose:
        return wiring.skopt_forest


class TestRandom(ProposerContract):
    learns: ClassVar[bool] = False

    @pytest.fixture
    def propose(self) -> Propose:
        return wiring.random
