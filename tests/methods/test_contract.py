"""Every method that trains passes the contract."""

from typing import ClassVar

import pytest

from tests.methods.contract import MethodContract, OnlineContract

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


class TestDistill(MethodContract):
    name = "distill"
    quick: ClassVar = {**MethodContract.quick, "teacher": "taught"}
    others: ClassVar = {"taught": [{"sft": {**MethodContract.quick, "dataset": "some/instructions"}}]}
    logged = frozenset({"kl", "hard_loss"})


class TestQAT(MethodContract):
    name = "qat"
    quick: ClassVar = {**MethodContract.quick, "granularity": "channel"}
    lora = None
    logged = frozenset()

    @pytest.fixture(autouse=True, scope="class")
    def _libraries(self) -> None:
        for library in ("torchao", "compressed_tensors"):
            pytest.importorskip(library)


class TestRewardModel(MethodContract):
    name = "reward_model"
    quick: ClassVar = {**MethodContract.quick, "held_out_pairs": 4}
    head = "reward"
    logged = frozenset({"accuracy", "margin", "mean_reward"})


class TestPPO(OnlineContract):
    name = "ppo"
    logged = frozenset(
        {
            "kl_k3",
            "kl_coef",
            "clip_fraction",
            "approximate_kl",
            "policy_loss",
            "value_loss",
            "explained_variance",
            "ratio_max",
            "updates",
            "sampler_gap",
        }
    )


ONLINE = frozenset({"reward_std", "kl_k3", "approximate_kl", "loss", "ratio_max", "updates", "sampler_gap"})


class TestGRPO(OnlineContract):
    name = "grpo"
    logged = ONLINE | {"clip_fraction", "informative"}


class TestRLOO(OnlineContract):
    name = "rloo"
    logged = ONLINE | {"clip_fraction", "advantage_std"}


class TestOnlineDPO(OnlineContract):
    name = "online_dpo"
    logged = ONLINE | {"rewards_margin", "rewards_accuracy", "decided"}
