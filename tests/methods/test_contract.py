"""Every method that trains a policy on a dataset passes the contract."""

from typing import ClassVar

from tests.methods.contract import MethodContract

REWARDS = frozenset(
    {"rewards_margin", "rewards_accuracy", "rewards_chosen", "rewards_rejected", "logps_chosen", "logps_rejected"}
)


class TestSFT(MethodContract):
    name = "sft"
    logged = frozenset()


class TestDPO(MethodContract):
    name = "dpo"
    logged = REWARDS


class TestKTO(MethodContract):
    name = "kto"
    # Large enough for a good and a bad answer in every batch.
    quick: ClassVar = {**MethodContract.quick, "batch_size": 8}
    logged = REWARDS - {"rewards_accuracy"} | {"kl"}


class TestORPO(MethodContract):
    name = "orpo"
    logged = REWARDS | {"nll", "log_odds_ratio"}


class TestCPO(MethodContract):
    name = "cpo"
    logged = REWARDS | {"nll"}


class TestSimPO(MethodContract):
    name = "simpo"
    logged = REWARDS
