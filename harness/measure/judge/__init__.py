"""Helpfulness, harmlessness and preference of answers to held-out prompts, judged by models."""

from harness.measure.judge._local import (
    answer_prompts,
    judge_fingerprint,
    judge_prompts,
    judge_responses,
    measure_judge,
)
from harness.measure.judge._types import JudgePrompt

__all__ = ["JudgePrompt", "answer_prompts", "judge_fingerprint", "judge_prompts", "judge_responses", "measure_judge"]
