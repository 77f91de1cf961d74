"""Makes the training sets of the constraint task: instructions, preferences and prompts with a verifiable reward.

    python -m harness.bundled.make_constraints            # writes harness/bundled/local/constraints
    python -m harness.bundled.make_constraints --prompts  # only the prompts (no model needed)

Prompts: a question and two or three checkable constraints. Instructions: answers sampled from the bundled model and
edited so that each constraint is met with probability `EDIT_RATE`: imperfect demonstrations, which leave something
for preference learning to gain. Preferences: four answers per prompt, sampled from the bundled model after one pass of
supervised fine-tuning on those instructions, ranked by the gold reward; the best and the worst make a pair (ties
are dropped), and a seeded `LABEL_NOISE` of the pairs is swapped.
"""

import argparse
import json
import random
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.bundled.constraint_topics import HELD_OUT, TOPICS
from harness.gold import describe, gold_reward
from harness.method import Context, Inputs, LoadedModel, Trained, find_method
from harness.models import load_model, resolve_model

__all__ = ["EDIT_RATE", "LABEL_NOISE", "SYSTEM", "main", "make_prompts"]

EDIT_RATE = 0.7
LABEL_NOISE = 0.1
SYSTEM = "Follow every instruction."
"""A short system turn, so that fewer tokens are spent on what is the same in every row."""

_MODEL = "smollm2-135m-instruct"
_NEW_TOKENS = 32
_ENDINGS = ["Done.", "Thank you.", "The end.", "That is all."]
_OPENINGS = ["Sure:", "Answer:", "Well:", "In short:"]
_EXCLUSIVE = [
    {"lowercase", "start_with"},
    {"lowercase", "end_with"},
    {"bullets", "start_with"},
    {"bullets", "end_with"},
]

Row = dict[str, Any]


def make_prompts(count: int, topics: Sequence[tuple[str, list[str]]], rng: random.Random) -> list[Row]:
    """`count` distinct prompts: `{"prompt": messages, "constraints": JSON text}`."""
    rows: dict[str, Row] = {}
    while len(rows) < count:
        question, words = rng.choice(topics)
        values: dict[str, object] = {
            "max_words": rng.choice([8, 10, 12, 15]),
            "include": rng.choice(words),
            "end_with": rng.choice(_ENDINGS),
            "start_with": rng.choice(_OPENINGS),
            "lowercase": None,
            "bullets": rng.choice([2, 3]),
            "no_comma": None,
            "formal": None,
            "min_words": rng.choice([8, 10]),
        }
        # Kinds that a short answer meets by chance are asked for less often, so that the score measures the others.
        weights = {"max_words": 3, "include": 4, "end_with": 4, "start_with": 3, "lowercase": 4, "bullets": 3}
        kinds: list[str] = []
        for _ in range(rng.choice([2, 2, 3])):
            pool = [k for k in values if k not in kinds]
            kinds.append(rng.choices(pool, [weights.get(k, 1) for k in pool])[0])
        if any(pair <= set(kinds) for pair in [*_EXCLUSIVE, {"min_words", "max_words"}]):
            continue
        constraints: list[Row] = [{"kind": k, "value": values[k]} for k in kinds]
        text = " ".join([question, *(describe(c) for c in constraints)])
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        rows[text] = {"prompt": prompt, "constraints": json.dumps(constraints)}
    return list(rows.values())


def _sample(loaded: LoadedModel, rows: Sequence[Row], per_prompt: int, seed: int) -> list[list[str]]:
    import torch

    torch.manual_seed(seed)
    texts = [
        loaded.tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in rows
    ]
    answers: list[list[str]] = []
    for start in range(0, len(texts), 16):
        batch = loaded.tokenizer(texts[start : start + 16], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            out = loaded.model.generate(
                **batch,
                max_new_tokens=_NEW_TOKENS,
                do_sample=True,
                temperature=0.8,
                top_k=0,
                top_p=0.95,
                num_return_sequences=per_prompt,
                eos_token_id=loaded.tokenizer.eos_token_id,
                pad_token_id=loaded.tokenizer.pad_token_id,
            )
        decoded = loaded.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [decoded[i : i + per_prompt] for i in range(0, len(decoded), per_prompt)]
        print(f"sampled {len(answers)} of {len(texts)} prompts", flush=True)
    return answers


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in re.findall(r"[^.!?\n]+[.!?]", text) if len(s.split()) >= 3]


def _edit(text: str, constraints: Sequence[Row], rng: random.Random) -> str:
    sentences = _sentences(text) or [" ".join(text.split()[:10]).rstrip(",.;:") + "."]
    asked: dict[str, Any] = {c["kind"]: c.get("value") for c in constraints if rng.random() < EDIT_RATE}
    answer = " ".join(sentences[:2])
    if "bullets" in asked:
        lines = re.split(r"(?<=[.!?])\s+|,\s+(?:and\s+)?", answer)
        answer = "\n".join(f"- {line.strip().capitalize()}" for line in lines if line.strip())
        wanted = int(asked["bullets"])
        have = answer.splitlines()[:wanted]
        answer = "\n".join(have)
    elif "max_words" in asked:
        answer = sentences[0]
        words = answer.split()
        if len(words) > int(asked["max_words"]) - 3:
            answer = " ".join(words[: max(4, int(asked["max_words"]) - 3)]).rstrip(",;:.") + "."
    if "no_comma" in asked:
        answer = answer.replace(",", "")
    if "include" in asked and str(asked["include"]).lower() not in answer.lower():
        answer = answer.rstrip(".!?") + f" with {asked['include']}."
    if "start_with" in asked:
        answer = f"{asked['start_with']} {answer}"
    if "end_with" in asked:
        answer = f"{answer} {asked['end_with']}"
    return answer.lower() if "lowercase" in asked else answer


def _constraints(row: Row) -> list[Row]:
    constraints: list[Row] = json.loads(row["constraints"])
    return constraints


def _instructions(rows: Sequence[Row], loaded: LoadedModel, rng: random.Random) -> list[Row]:
    made = []
    for row, answers in zip(rows, _sample(loaded, rows, per_prompt=2, seed=1), strict=True):
        edited = _edit(max(answers, key=lambda a: gold_reward(a, _constraints(row))), _constraints(row), rng)
        made.append({**row, "completion": [{"role": "assistant", "content": edited}]})
    return made


def _pairs(rows: Sequence[Row], answers: Sequence[Sequence[str]], rng: random.Random) -> list[Row]:
    made = []
    for row, candidates in zip(rows, answers, strict=True):
        ranked = sorted(candidates, key=lambda a: gold_reward(a, _constraints(row)))
        worst, best = ranked[0], ranked[-1]
        scores = gold_reward(best, _constraints(row)), gold_reward(worst, _constraints(row))
        if scores[0] == scores[1]:
            continue
        noisy = rng.random() < LABEL_NOISE
        chosen, rejected = (worst, best) if noisy else (best, worst)
        made.append(
            {
                **row,
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "gold_chosen": scores[noisy],
                "gold_rejected": scores[not noisy],
            }
        )
    return made


def _fine_tuned(base: Path, instructions: Path, scratch: Path) -> LoadedModel:
    import datasets

    method = find_method("sft")
    rows = datasets.load_dataset("json", data_files=str(instructions), split="train", cache_dir=str(scratch))
    inputs = Inputs(
        {"policy": base}, lambda role, folder: load_model(folder), rows.select_columns(["prompt", "completion"])
    )
    context = Context(
        seed=0, scratch=scratch, precision="bfloat16", log=lambda step, total, m: print(step, total, dict(m))
    )
    params = method.params.model_validate(
        {"dataset": "instructions", "learning_rate": 2e-5, "steps": 36, "batch_size": 8}
    )
    trained = method().run(inputs, params, context)
    if not isinstance(trained, Trained):
        raise TypeError(f"{method.name} left no model")
    return LoadedModel(trained.model, trained.tokenizer, base)


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path.name}: {sum(1 for _ in path.open(encoding='utf-8'))} rows", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files; the same seed and library versions give the same rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", action="store_true", help="write only the prompts")
    parser.add_argument("--pairs", action="store_true", help="keep the instructions; write prompts and pairs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "local" / "constraints")
    options = parser.parse_args(arguments)
    rng = random.Random(20240)
    sets = {
        name: make_prompts(count, topics, rng)
        for name, count, topics in [
            ("instructions-train", 288, TOPICS),
            ("preferences-train", 384, TOPICS),
            ("preferences-test", 64, HELD_OUT),
            ("prompts-train", 512, TOPICS),
            ("prompts-test", 160, HELD_OUT),
        ]
    }
    for name in ("prompts-train", "prompts-test"):
        _write(options.out / f"{name}.jsonl", sets[name])
    if options.prompts:
        return
    base = resolve_model(_MODEL)
    instructions = options.out / "instructions-train.jsonl"
    if not options.pairs:
        _write(
            instructions,
            _instructions(sets["instructions-train"], load_model(base, dtype="bfloat16"), random.Random(1)),
        )
    with tempfile.TemporaryDirectory() as scratch:
        tuned = _fine_tuned(base, instructions, Path(scratch))
    tuned.model.bfloat16().eval()
    tuned.tokenizer.padding_side = "left"
    for number, name in enumerate(("preferences-train", "preferences-test")):
        answers = _sample(tuned, sets[name], per_prompt=4, seed=2 + number)
        _write(options.out / f"{name}.jsonl", _pairs(sets[name], answers, random.Random(2 + number)))


if __name__ == "__main__":
    main()
