"""Helpfulness, harmlessness and preference of answers to held-out prompts, judged by models."""

from harness.measure.judge._answers import answer_prompts
from harness.measure.judge._local import LocalVoter
from harness.measure.judge._pairs import measure_pairs
from harness.measure.judge._panel import judge_fingerprint, measure_judge
from harness.measure.judge._sets import judge_prompts
from harness.measure.judge._types import JudgePrompt, Question, Verdict, Voter

__all__ = [
    "JudgePrompt",
    "LocalVoter",
    "Question",
    "Verdict",
    "Voter",
    "answer_prompts",
    "judge_fingerprint",
    "judge_prompts",
    "measure_judge",
    "measure_pairs",
]
