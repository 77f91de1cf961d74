"""An lm-eval model, `prefix-tree`, that computes every shared token once; importing this registers it."""

from harness.measure.scoring._counted import CountedHFLM
from harness.measure.scoring._forward import Budget
from harness.measure.scoring._generate import Generated
from harness.measure.scoring._sampling import GREEDY, Sampling
from harness.measure.scoring.lm import Engine, PrefixTreeLM, encode_chat

__all__ = ["GREEDY", "Budget", "CountedHFLM", "Engine", "Generated", "PrefixTreeLM", "Sampling", "encode_chat"]
