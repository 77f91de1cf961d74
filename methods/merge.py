"""Model merging: one policy of several that were trained from the same base, without training and without data.

linear: a weighted mean of weights (model soups, Wortsman et al. 2022, arXiv:2203.05482), or with `scale` other than 1
task arithmetic (Ilharco et al. 2022, arXiv:2212.04089). slerp: along the great circle between weights (Shoemake 1985,
"Animating rotation with quaternion curves", SIGGRAPH). ties: of each task vector (what training added to the base) the
largest entries, then for each weight the mean of those that agree in sign (Yadav et al. 2023, arXiv:2306.01708).
dare_linear, dare_ties: entries of task vectors dropped by chance and the others enlarged, then the mean, or the mean of
those that agree (Yu et al. 2023, arXiv:2311.03099).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from harness.errors import UserError
from harness.method import Context, Inputs, LoadedModel, Method, Params, Trained, tunable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Merge", "MergeParams"]

_DENSITY = 0.2
_MOST = 8


def _weight(number: int) -> Any:  # noqa: ANN401  # what pydantic's Field returns
    return Field(
        None,
        ge=0,
        description=f"weight of model {number}, relative to the others; null: 1",
        json_schema_extra=tunable(0.0, 1.0),
        exclude_if=lambda weight: weight is None,
    )


class MergeParams(Params):
    """Settings of model merging."""

    models: list[str] = Field(
        [],
        description="what is merged: recipes, base, or models (bundled name, hub id, folder), at least two, all "
        "trained from one base model; empty: the policies after each of this recipe's own steps before this one",
    )
    how: Literal["linear", "slerp", "ties", "dare_linear", "dare_ties"] = Field(
        "linear",
        description="linear: weighted mean (arXiv:2203.05482); slerp: along the arc between them (Shoemake 1985); "
        "ties: the largest changes, where they agree in sign (arXiv:2306.01708); dare_linear, dare_ties: changes "
        "dropped by chance and the others enlarged (arXiv:2311.03099), then as linear or ties",
    )
    weights: list[float] | None = Field(
        None,
        description="weight of each model in order, relative to the others; null: equal. To search one, set weight_1, "
        "weight_2, … in its place",
        exclude_if=lambda weights: weights is None,
    )
    weight_1: float | None = _weight(1)
    weight_2: float | None = _weight(2)
    weight_3: float | None = _weight(3)
    weight_4: float | None = _weight(4)
    weight_5: float | None = _weight(5)
    weight_6: float | None = _weight(6)
    weight_7: float | None = _weight(7)
    weight_8: float | None = _weight(8)
    density: float = Field(
        _DENSITY,
        gt=0,
        le=1,
        description="with ties the part of each model's changes that is kept, the largest; with dare the chance of "
        "each to be kept",
        json_schema_extra=tunable(0.1, 1.0),
    )
    scale: float = Field(
        1.0,
        gt=0,
        description="what the merged change from the base is multiplied by: 1 is a mean of the models, their number "
        "the sum of all their changes; not with slerp",
        json_schema_extra=tunable(0.5, 2.0),
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.models and not 2 <= len(self.models) <= _MOST:
            raise ValueError(f"models: expected 2 to {_MOST} to merge, or none for the steps before")
        if not all(self.models) or len(set(self.models)) < len(self.models):
            raise ValueError("models: expected names, each once")
        single = {n: w for n in range(1, _MOST + 1) if (w := getattr(self, f"weight_{n}")) is not None}
        if self.weights is not None and single:
            raise ValueError("weights gives all weights already; leave weight_1, weight_2, … or it out")
        given = self.weights if self.weights is not None else list(single.values())
        if any(w < 0 for w in given) or (self.weights is not None and not sum(self.weights)):
            raise ValueError("weights: expected numbers of at least 0, not all 0")
        if self.models:
            if self.weights is not None and len(self.weights) != len(self.models):
                raise ValueError(f"weights: expected one for each of {len(self.models)} models")
            if single and max(single) > len(self.models):
                raise ValueError(f"weight_{max(single)} is of no model: there are {len(self.models)}")
        if self.how in ("linear", "slerp") and self.density != _DENSITY:
            raise ValueError(f"{self.how} drops nothing, so it has no density; it is for ties and dare")
        if self.how == "slerp" and self.scale != 1.0:
            raise ValueError("slerp keeps to the arc between the models, so it has no scale")
        return self

    def weights_of(self, count: int) -> list[float]:
        """The weight of each of `count` models.

        Raises:
            UserError: there are more weights than models, or fewer, or all are 0.
        """
        if self.weights is not None:
            found = list(self.weights)
        else:
            single = [getattr(self, f"weight_{n}") for n in range(1, _MOST + 1)]
            last = max((n for n, w in enumerate(single, start=1) if w is not None), default=0)
            found = [1.0 if w is None else w for w in single[: max(count, last)]]
            found += [1.0] * (count - len(found))
        if len(found) != count:
            raise UserError(f"merge: there are {count} models and {len(found)} weights; give one for each")
        if sum(found) <= 0:
            raise UserError("merge: all weights are 0; give at least one model a weight above 0")
        return found


class Merge(Method[MergeParams]):
    """Several policies made one, weight by weight."""

    name = "merge"
    summary = "model merging: one policy of several, by the mean, SLERP, TIES or DARE"
    paper = "Wortsman 2022, arXiv:2203.05482; Yadav et al. 2023, arXiv:2306.01708; Yu et al. 2023, arXiv:2311.03099"
    version = 1
    params = MergeParams
    needs = frozenset({"origin"})
    dataset_kind = None
    fixed = frozenset({"models"})

    @classmethod
    def merges(cls, settings: Mapping[str, object]) -> Sequence[str]:
        """The models by name; none: this recipe's own steps."""
        models = settings.get("models")
        return [str(name) for name in models] if isinstance(models, list) else []

    def run(self, inputs: Inputs, params: MergeParams, context: Context) -> Trained:
        """Merge the policies `merge_0`, `merge_1`, … over `origin`, the base model that their changes are counted from.

        All of them are in memory at once, 4 bytes a weight each. Metrics: `models`; `change`, the norm of the merged
        change from the base over the mean norm of the models' own; `agreement`, the part of the weights changed at all
        on which no two models disagree in sign.

        Raises:
            UserError: fewer than two models, or models of different architectures or vocabularies.
            PrunedError: past the deadline.
        """
        import torch

        from methods._merging import check_alike, parameters

        roles = sorted((r for r in inputs.folders if r.startswith("merge_")), key=lambda r: int(r.partition("_")[2]))
        if len(roles) < 2:
            raise UserError(
                f"merge: policies to merge: {len(roles)}; put at least two training steps before it, or name models"
            )
        loaded = [inputs.load(role) for role in roles]
        origin = inputs.load("origin")
        check_alike([origin, *loaded])
        weights = params.weights_of(len(loaded))
        base, models = parameters(origin.model), [parameters(one.model) for one in loaded]
        levels = _levels(base, models, params)
        generator = torch.Generator().manual_seed(context.seed)
        tally = _Tally(len(models))
        # Into one of the models: it has the configuration, the tokenizer and what is no weight.
        result: LoadedModel = loaded[-1]
        for number, (name, start) in enumerate(base.items(), start=1):
            context.check()
            tensors = [model[name] for model in models]
            found = _merged(start, tensors, weights, levels, params, generator)
            tally.add([t - start for t in tensors], found - start)
            result.model.get_parameter(name).data.copy_(found)
            context.log(number, len(base), {})
        return Trained(result.model, result.tokenizer, {"models": float(len(models)), **tally.metrics()})


def _levels(
    base: "Mapping[str, Tensor]", models: "Sequence[Mapping[str, Tensor]]", params: MergeParams
) -> Sequence[float]:
    """For each model the magnitude below which a change is cut off."""
    from methods._merging import trim_level

    if params.how != "ties":
        return []
    entries = sum(start.numel() for start in base.values())
    return [trim_level((model[n] - start for n, start in base.items()), entries, params.density) for model in models]


def _merged(
    base: "Tensor",
    tensors: "Sequence[Tensor]",
    weights: Sequence[float],
    levels: Sequence[float],
    params: MergeParams,
    generator: "torch.Generator",
) -> "Tensor":
    from methods._merging import consensus, dropped, slerp, task_mean, trimmed

    if params.how == "slerp":
        return slerp(tensors, weights)
    vectors = [t - base for t in tensors]
    if params.how == "ties":
        vectors = [trimmed(v, level) for v, level in zip(vectors, levels, strict=True)]
    elif params.how != "linear":
        vectors = [dropped(v, params.density, generator) for v in vectors]
    if params.how in ("ties", "dare_ties"):
        return base + params.scale * consensus(vectors, weights)
    return task_mean(base, vectors, weights, params.scale)


class _Tally:
    """How far the models and their merger lie from the base, and how far the models agree."""

    def __init__(self, count: int) -> None:
        self._own, self._merged, self._changed, self._agreed = [0.0] * count, 0.0, 0, 0

    def add(self, vectors: "Sequence[Tensor]", merged: "Tensor") -> None:
        import torch

        for place, vector in enumerate(vectors):
            self._own[place] += float(vector.double().square().sum())
        self._merged += float(merged.double().square().sum())
        signs = torch.stack([v.sign() for v in vectors])
        up, down = (signs > 0).any(0), (signs < 0).any(0)
        self._changed += int((up | down).sum())
        self._agreed += int((up ^ down).sum())

    def metrics(self) -> dict[str, float]:
        own = sum(square**0.5 for square in self._own) / len(self._own)
        return {
            "change": self._merged**0.5 / own if own else 0.0,
            "agreement": self._agreed / self._changed if self._changed else 1.0,
        }
