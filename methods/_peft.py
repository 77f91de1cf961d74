"""Settings of parameter-efficient training: which few weights learn, in place of all of them.

LoRA (Hu et al. 2021, arXiv:2106.09685) adds a product of two thin matrices to each matrix of the model, W + s B A. DoRA
(Liu et al. 2024, arXiv:2402.09353) learns the length of each row besides; rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732) scales by alpha over the root of the rank; PiSSA (Meng et al. 2024, arXiv:2404.02948) starts from the
largest singular vectors of W; LoRA+ (Hayou et al. 2024, arXiv:2402.12354) trains B faster than A. (IA)3 (Liu et al.
2022, arXiv:2205.05638) scales keys, values and the inner activations of feed-forward layers. Prompt tuning (Lester et
al. 2021, arXiv:2104.08691) learns a few vectors that stand before every input and leaves the weights alone.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from harness.method import Params, tunable

__all__ = ["RANKED", "PeftParams"]

RANKED = frozenset({"lora", "dora", "rslora", "pissa", "lora_plus"})
"""The kinds of adapter that have a rank."""

_ALPHA, _RATIO, _TOKENS = 32, 16.0, 20


def _is_lora(kind: str) -> bool:
    return kind == "lora"


def _is_all(part: str) -> bool:
    return part == "all"


def _is_paper_ratio(ratio: float) -> bool:
    return ratio == _RATIO


def _is_usual_length(tokens: int) -> bool:
    return tokens == _TOKENS


class PeftParams(Params):
    """The settings of adapters, of every method that trains by gradients.

    All but rank and scale are later settings: left out of a stage's stored settings at their defaults, so that keys
    stay what they were.
    """

    soft_prompts: ClassVar[bool] = False
    """Whether prompt tuning is possible: it needs a method that runs the whole model, and `lora_merge`."""

    lora_rank: int = Field(
        0,
        ge=0,
        description="rank of the adapters; 0 trains every weight, with adapter ia3 and prompt_tuning only theirs",
        json_schema_extra=tunable(4, 64, log=True),
    )
    lora_alpha: float = Field(
        float(_ALPHA), gt=0, description="adapters are multiplied by lora_alpha / lora_rank; rslora: by its root"
    )
    adapter: Literal["lora", "dora", "rslora", "pissa", "lora_plus", "ia3", "prompt_tuning"] = Field(
        "lora",
        description="lora: W + B A (arXiv:2106.09685); dora: also the length of each row (arXiv:2402.09353); rslora: "
        "scaled by lora_alpha over the root of the rank, for high ranks (arXiv:2312.03732); pissa: begins with the "
        "largest singular vectors (arXiv:2404.02948); lora_plus: B learns faster than A (arXiv:2402.12354); these five "
        "need a lora_rank. ia3: scales of keys, values and feed-forward activations (arXiv:2205.05638; its "
        "learning_rate is 3e-3); prompt_tuning: vectors before every input (arXiv:2104.08691; its rate is 0.3), needs "
        "lora_merge: false",
        exclude_if=_is_lora,
    )
    adapter_targets: Literal["all", "attention", "mlp"] = Field(
        "all",
        description="where the adapters are: every linear layer but the output layer, those of attention, or those of "
        "the feed-forward parts; ia3: keys and values are its attention, the last feed-forward layer's input its mlp",
        exclude_if=_is_all,
    )
    lora_plus_ratio: float = Field(
        _RATIO,
        ge=1,
        description="with adapter lora_plus: the learning rate of B over that of A, which is learning_rate",
        json_schema_extra=tunable(2.0, 32.0, log=True),
        exclude_if=_is_paper_ratio,
    )
    prompt_tokens: int = Field(
        _TOKENS,
        ge=1,
        description="with adapter prompt_tuning: how many vectors stand before every input; each takes the place of a "
        "token in the model's context",
        json_schema_extra=tunable(5, 100, log=True),
        exclude_if=_is_usual_length,
    )

    @property
    def adapts(self) -> bool:
        """Whether adapters learn, and the model's own weights do not."""
        return self.lora_rank > 0 or self.adapter not in RANKED

    @property
    def ratio(self) -> float:
        """The learning rate of an adapter's second matrix over that of its first: 1 but for LoRA+."""
        return self.lora_plus_ratio if self.adapter == "lora_plus" else 1.0

    @model_validator(mode="after")
    def _adapter_has_what_it_needs(self) -> Self:
        kind = self.adapter
        if kind not in RANKED and self.lora_rank:
            raise ValueError(f"adapter {kind} has no rank: leave lora_rank out, or choose one of {_listed(RANKED)}")
        if kind not in RANKED and self.lora_alpha != _ALPHA:
            raise ValueError(f"adapter {kind} has no scale: leave lora_alpha out, or choose one of {_listed(RANKED)}")
        if kind in RANKED - {"lora"} and not self.lora_rank:
            raise ValueError(f"adapter {kind} needs a rank: set lora_rank, such as 16")
        if self.adapter_targets != "all" and not self.adapts:
            raise ValueError("adapter_targets says where adapters are: set lora_rank, or adapter: ia3")
        if self.adapter_targets != "all" and kind == "prompt_tuning":
            raise ValueError("adapter prompt_tuning changes no layer: leave adapter_targets out")
        if self.lora_plus_ratio != _RATIO and kind != "lora_plus":
            raise ValueError(f"lora_plus_ratio is not used by adapter {kind}; leave it out, or choose lora_plus")
        if self.prompt_tokens != _TOKENS and kind != "prompt_tuning":
            raise ValueError(f"prompt_tokens is not used by adapter {kind}; leave it out, or choose prompt_tuning")
        if kind == "prompt_tuning" and not self.soft_prompts:
            raise ValueError(
                "adapter prompt_tuning is not possible here: its vectors cannot become weights, and what this method "
                f"trains must be an ordinary model; choose one of {_listed(RANKED | {'ia3'})}"
            )
        return self


def _listed(kinds: frozenset[str]) -> str:
    return ", ".join(sorted(kinds))
