"""Helpfulness, harmlessness and preference of answers to held-out prompts, judged by models."""

from harness.measure.judge._answers import answer_prompts
from harness.measure.judge._cache import CachedVoter, VoteCache, endpoint_voter
from harness.measure.judge._endpoint import EndpointVoter, endpoint_problem
from harness.measure.judge._known import quality_problem
from harness.measure.judge._local import LocalVoter
from harness.measure.judge._pairs import measure_pairs
from harness.measure.judge._panel import judge_fingerprint, measure_judge
from harness.measure.judge._quality import measure_quality, quality_fingerprint
from harness.measure.judge._sets import judge_prompts, prompt_problems
from harness.measure.judge._speaking import SpeakingVoter
from harness.measure.judge._types import JudgePrompt, Question, Verdict, Voter

__all__ = [
    "CachedVoter",
    "EndpointVoter",
    "JudgePrompt",
    "LocalVoter",
    "Question",
    "SpeakingVoter",
    "Verdict",
    "VoteCache",
    "Voter",
    "answer_prompts",
    "endpoint_problem",
    "endpoint_voter",
    "judge_fingerprint",
    "judge_prompts",
    "measure_judge",
    "measure_pairs",
    "measure_quality",
    "prompt_problems",
    "quality_fingerprint",
    "quality_problem",
]
