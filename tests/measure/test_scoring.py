"""The `prefix-tree` model against lm-eval's `hf` on the same requests, and the tree and attention by themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from harness.errors import MeasurementError
from harness.measure.scoring import Engine, PrefixTreeLM, Sampling, _products
from harness.measure.scoring._attention import _attend_math, attend
from harness.measure.scoring._products import fast_products, product
from harness.measure.scoring._tree import build_tree
from harness.method import LoadedModel
from harness.models import load_model


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def ours(loaded: LoadedModel) -> PrefixTreeLM:
    return PrefixTreeLM(loaded.model, tokenizer=loaded.tokenizer, token_budget=256)


@pytest.fixture(scope="module")
def theirs(loaded: LoadedModel) -> HFLM:
    return HFLM(loaded.model, tokenizer=loaded.tokenizer, batch_size=1, logits_cache=False)


def _requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, a, i, metadata=("t", i, 1)) for i, a in enumerate(arguments)]  # type: ignore[arg-type]


def _same(ours: PrefixTreeLM, theirs: HFLM, pairs: list[tuple[str, str]]) -> None:
    got = ours.loglikelihood(_requests("loglikelihood", pairs))
    expected = theirs.loglikelihood(_requests("loglikelihood", pairs), disable_tqdm=True)
    for pair, (value, greedy), (right, right_greedy) in zip(pairs, got, expected, strict=True):
        assert abs(value - right) <= 1e-3, pair
        assert greedy == right_greedy, pair


LONG = "def f(x):\n    return x + 1\n" * 60
ADVERSARIAL = [
    ("", "first words of nothing"),
    ("", "<|im_start|>begins with the prefix token"),
    ("The answer is", " A"),
    ("The answer is", " B"),
    ("The answer is ", "A"),
    ("The answer is  \n", "A"),
    ("The answer", " is A"),
    ("The answer is A", " and"),
    ("The answer is A and", " then some more words that follow each other"),
    ("<|im_start|>user\nhello", " there"),
    ("naïve café \N{SNOWMAN}", " \N{PILE OF POO} 漢字"),
    (LONG, " end"),
    (LONG + "x", " end of the text"),
    ("short", " " + LONG[:500]),
]


def test_loglikelihood_equals_hf_on_adversarial_requests(ours: PrefixTreeLM, theirs: HFLM) -> None:
    assert ours.engine.fallback is None
    _same(ours, theirs, ADVERSARIAL)
    _same(ours, theirs, ADVERSARIAL[::-1])


def test_one_request_and_a_thousand_equal_ones(ours: PrefixTreeLM, theirs: HFLM) -> None:
    _same(ours, theirs, ADVERSARIAL[2:3])
    many = ours.loglikelihood(_requests("loglikelihood", ADVERSARIAL[2:3] * 1000))
    assert len(many) == 1000
    assert len(set(many)) == 1
    assert ours.loglikelihood([]) == []


_WORDS = st.lists(st.sampled_from(["a", " return", "\n", " x", "é", "  ", "<|im_start|>", " model"]), max_size=40).map(
    "".join
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_WORDS, _WORDS.filter(lambda s: bool(s.strip()))), min_size=1, max_size=12))
def test_loglikelihood_equals_hf_on_random_requests(
    ours: PrefixTreeLM, theirs: HFLM, pairs: list[tuple[str, str]]
) -> None:
    base = pairs[0][0]
    related = [(base + c, t) for c, t in pairs]

    # A continuation without a token of its own is an assertion in lm-eval and an error here.
    def scorable(pair: tuple[str, str]) -> bool:
        context, continuation = pair
        encoded = theirs._encode_pair(context, continuation) if context else ([0], theirs.tok_encode(continuation))
        return len(encoded[0]) > 0 and len(encoded[1]) > (0 if context else 1)

    chosen = [p for p in pairs + related if scorable(p)]
    if chosen:
        _same(ours, theirs, chosen)


def test_the_case_that_lm_evals_logits_cache_gets_wrong(ours: PrefixTreeLM, theirs: HFLM) -> None:
    text = "one two three four five six"
    _same(ours, theirs, [(text[:n], text[n:]) for n, c in enumerate(text) if c == " "])


def test_a_request_that_cannot_be_scored_is_named(ours: PrefixTreeLM) -> None:
    for pair in ((" ", "spaces alone before"), ("The answer", "")):
        with pytest.raises(MeasurementError, match="cannot be scored"):
            ours.loglikelihood(_requests("loglikelihood", [pair]))


def test_rolling_loglikelihood_equals_hf(ours: PrefixTreeLM, theirs: HFLM) -> None:
    texts = [("short text",), (LONG,), (LONG + LONG,), ("<|im_start|>with its prefix",)]
    got = ours.loglikelihood_rolling(_requests("loglikelihood_rolling", texts))
    expected = theirs.loglikelihood_rolling(_requests("loglikelihood_rolling", texts), disable_tqdm=True)
    for value, right in zip(got, expected, strict=True):
        assert value == pytest.approx(right, abs=5e-3, rel=1e-6)


def _greedy(until: list[str], n: int = 24) -> dict[str, Any]:
    return {"until": until, "do_sample": False, "max_gen_toks": n}


def test_greedy_generation_equals_hf(ours: PrefixTreeLM, theirs: HFLM) -> None:
    shared = "Question: what is it?\nAnswer: this is what it is.\n" * 6
    contexts = [shared + tail for tail in ("Question: a", "Question: a much longer one with words", "Q", "")]
    contexts += ["def", "class Model(", shared[:60], LONG, contexts[0], "é\N{SNOWMAN}"]
    plain = theirs.generate_until(_requests("generate_until", [(c, _greedy([])) for c in contexts]), disable_tqdm=True)
    # Stops taken from what is really written, so that some rows end early and others do not.
    stops = [plain[0][3:6], plain[4][5:7]]
    assert all(stops)
    arguments = [(c, _greedy(until, n)) for until, n in ((stops, 24), ([], 24), ([stops[0]], 9)) for c in contexts]
    got = ours.generate_until(_requests("generate_until", arguments))
    expected = theirs.generate_until(_requests("generate_until", arguments), disable_tqdm=True)
    assert got == expected
    assert len({len(t) for t in got}) > 3


def test_generation_ends_at_the_end_token(loaded: LoadedModel) -> None:
    engine = Engine(loaded.model)
    context = loaded.tokenizer("def f")["input_ids"]
    (free,) = engine.generate([context], 12)
    assert len(free.tokens) == 12
    assert not free.ended
    (ended,) = engine.generate([context], 12, ends=frozenset([free.tokens[4]]))
    first = free.tokens.index(free.tokens[4])
    assert ended.tokens == free.tokens[: first + 1]
    assert ended.ended


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(loaded: LoadedModel) -> None:
    engine = Engine(loaded.model)
    contexts = [loaded.tokenizer(t)["input_ids"] for t in ("def f", "class A", "import os and more", "def f", "x")]
    sampling = Sampling(temperature=1.0)
    together = engine.generate(contexts, 10, sampling=sampling, seeds=[5, 6, 7, 8, 9])
    alone = [
        engine.generate([c], 10, sampling=sampling, seeds=[s])[0] for c, s in zip(contexts, range(5, 10), strict=True)
    ]
    assert together == alone
    assert together[0] != together[3]
    assert engine.generate(contexts[:1], 10, sampling=Sampling(1.0, top_k=1), seeds=[1]) == engine.generate(
        contexts[:1], 10
    )
    assert engine.generate(contexts[:1], 10, sampling=Sampling(1.0, top_p=1e-6), seeds=[1]) == engine.generate(
        contexts[:1], 10
    )


def test_sampled_tokens_follow_the_distribution(loaded: LoadedModel) -> None:
    engine = Engine(loaded.model)
    context = loaded.tokenizer("def f")["input_ids"]
    n = 4000
    drawn = engine.generate([context] * n, 1, sampling=Sampling(0.5), seeds=list(range(n)))
    with torch.inference_mode():
        expected = (loaded.model(torch.tensor([context])).logits[0, -1] / 0.5).softmax(-1)
    counts = torch.bincount(torch.tensor([g.tokens[0] for g in drawn]), minlength=len(expected)) / n
    # The total variation of n draws from equally likely tokens is about sqrt(tokens / (2 pi n)).
    assert float((counts - expected).abs().sum() / 2) < 0.2
    top = expected.argmax()
    assert abs(float(counts[top] - expected[top])) < 4 * float((expected[top] / n).sqrt())


def test_the_engine_batches_within_its_memory(loaded: LoadedModel) -> None:
    from dataclasses import replace

    engine = Engine(loaded.model)
    contexts = [loaded.tokenizer("def f " * (3 + i))["input_ids"] for i in range(9)]
    whole = engine.generate(contexts, 6)
    engine.budget = replace(engine.budget, cache_bytes=60_000, tokens=16, logit_bytes=4 * 600 * 3)
    assert engine.generate(contexts, 6) == whole
    pairs = [(c, 2) for c in contexts]
    small = engine.score(pairs)
    for (a, g), (b, h) in zip(small, Engine(loaded.model).score(pairs), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert g == h


@pytest.mark.parametrize("kind", ["sliding", "learned", "no_backend"])
def test_other_architectures_score_the_same(loaded: LoadedModel, theirs: HFLM, kind: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shared = {"vocab_size": len(loaded.tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    model: Any
    if kind == "learned":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=512, **shared))
    else:
        window = 8 if kind == "sliding" else None
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = MistralForCausalLM(
            MistralConfig(sliding_window=window, num_key_value_heads=2, max_position_embeddings=512, **sizes, **shared)
        )
        if kind == "no_backend":
            model._supports_attention_backend = False
    model.eval()
    lm = PrefixTreeLM(model, tokenizer=loaded.tokenizer)
    assert (lm.engine.fallback is None) == (kind == "learned")
    reference = HFLM(model, tokenizer=loaded.tokenizer, batch_size=1, logits_cache=False)
    _same(lm, reference, ADVERSARIAL)
    arguments = [(c, _greedy([], 6)) for c in ("def f", "class A and more")]
    assert lm.generate_until(_requests("generate_until", arguments)) == reference.generate_until(
        _requests("generate_until", arguments), disable_tqdm=True
    )


def test_nan_weights_fail(loaded: LoadedModel, tiny_model: Path) -> None:
    broken = load_model(tiny_model)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[5:] = float("nan")
    lm = PrefixTreeLM(broken.model, tokenizer=broken.tokenizer)
    with pytest.raises(MeasurementError, match="NaN"):
        lm.loglikelihood(_requests("loglikelihood", [("The answer is", " A")]))


def test_lm_eval_finds_it_by_name_and_loads_a_folder(tiny_model: Path, theirs: HFLM) -> None:
    lm = get_model("prefix-tree").create_from_arg_string(f"pretrained={tiny_model},dtype=float32", {"device": "cpu"})
    _same(lm, theirs, ADVERSARIAL[2:8])
    assert lm.tokenizer_name == str(tiny_model).replace("/", "__")
    assert lm.apply_chat_template([{"role": "user", "content": "hi"}]).endswith("<|im_start|>assistant\n")


def test_each_result_goes_to_the_cache_hook(ours: PrefixTreeLM) -> None:
    class Hook:
        def __init__(self) -> None:
            self.seen: list[tuple[str, Any, Any]] = []

        def add_partial(self, kind: str, request: Any, result: Any) -> None:
            self.seen.append((kind, request, result))

    before, ours.cache_hook = ours.cache_hook, Hook()
    try:
        results = ours.loglikelihood(_requests("loglikelihood", ADVERSARIAL[2:5]))
        assert ours.cache_hook.seen == [
            ("loglikelihood", pair, result) for pair, result in zip(ADVERSARIAL[2:5], results, strict=True)
        ]
    finally:
        ours.cache_hook = before


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(1, 5),
)
def test_a_tree_holds_every_sequence(sequences: list[list[int]], saved: int, longest: int) -> None:
    tree = build_tree(sequences, min_saved=saved, max_segment=longest)
    for i, sequence in enumerate(sequences):
        places = tree.locate(i, range(len(sequence)))
        assert [int(tree.segments[s].tokens[o]) for s, o in places] == sequence
        assert places[-1][0] == tree.last[i]
    assert all(segment.parent < n for n, segment in enumerate(tree.segments))
    assert all(0 < len(segment.tokens) <= longest for segment in tree.segments)
    if saved == 1:
        distinct = {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}
        assert sum(len(s.tokens) for s in tree.segments) == len(distinct)


def test_the_two_attention_kernels_agree() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.zeros(2, 1, 1, 5)
    mask[0, ..., 3:] = float("-inf")
    for causal, masked in ((True, None), (False, None), (False, mask)):
        fused = attend(query, key, value, scale=0.3, causal=causal, mask=masked)
        plain = _attend_math(query, key, value, 0.3, causal, masked)
        for a, b in zip(fused, plain, strict=True):
            torch.testing.assert_close(a, b)


def test_compiled_models_say_so_and_score_the_same(tiny_model: Path, theirs: HFLM) -> None:
    loaded = load_model(tiny_model)
    whole = torch.compile(loaded.model, backend="eager")
    by_parts = load_model(tiny_model)
    by_parts.model.forward = torch.compile(by_parts.model.forward, backend="eager", dynamic=True)
    for model in (whole, by_parts.model):
        lm = PrefixTreeLM(model, tokenizer=loaded.tokenizer)
        assert lm.engine.fallback == "it is compiled"
        assert lm.get_model_info()["scorer_fallback"] == "it is compiled"
        _same(lm, theirs, ADVERSARIAL[2:8])


def test_quantised_models_share_tokens(tiny_model: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    loaded = load_model(tiny_model)
    torchao.quantize_(loaded.model, torchao.Int8WeightOnlyConfig())
    lm = PrefixTreeLM(loaded.model, tokenizer=loaded.tokenizer)
    assert lm.engine.fallback is None
    reference = HFLM(loaded.model, tokenizer=loaded.tokenizer, batch_size=1, logits_cache=False)
    _same(lm, reference, ADVERSARIAL[2:8])


def test_a_device_without_room_gets_smaller_passes(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.measure.scoring import _forward

    contexts = [loaded.tokenizer(f"def f{i} " * 12)["input_ids"] for i in range(9)]
    pairs = [(c, 2) for c in contexts]
    engine = Engine(loaded.model)
    expected, written = engine.score(pairs), engine.generate(contexts, 5)
    real, room = _forward.forward, 100

    def narrow(model: Any, plan: Any, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(tokens) > room:
            raise torch.OutOfMemoryError("as a GPU says it")
        return real(model, plan, tokens, *rest)

    monkeypatch.setattr(_forward, "forward", narrow)
    assert engine.generate(contexts, 5) == written
    assert engine.budget.tokens <= 128
    engine = Engine(loaded.model)
    assert [v for v, _ in engine.score(pairs)] == pytest.approx([v for v, _ in expected], abs=1e-4)
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        engine.score(pairs)


def _random_model(seed: int, kind: str, layers: int, groups: int, tied: bool) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    common = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": tied}
    if kind == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=layers, n_head=4, n_positions=256, initializer_range=0.5, **common)
        return GPT2LMHeadModel(config).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers, "num_attention_heads": 4}
    more = {**common, **sizes, "num_key_value_heads": groups, "initializer_range": 0.5, "max_position_embeddings": 256}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(head_dim=6, **more)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**more)).eval()


_TOKENS = st.lists(st.integers(0, 39), min_size=1, max_size=30)
_MODELS = st.builds(
    _random_model,
    st.integers(0, 99),
    st.sampled_from(["llama", "qwen2", "gpt2"]),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)


@settings(max_examples=30, deadline=None)
@given(_MODELS, _TOKENS, st.lists(st.tuples(_TOKENS, st.integers(1, 5)), min_size=1, max_size=10), st.integers(8, 80))
def test_random_models_score_as_their_plain_forward_pass(
    model: Any, stem: list[int], tails: list[tuple[list[int], int]], tokens: int
) -> None:
    pairs = [(stem + tail, min(count, len(tail))) for tail, count in tails]
    pairs += [(stem + tails[0][0], 1), ([0, *tails[-1][0]], 1)]
    engine = Engine(model, tokens)
    assert engine.fallback is None
    for (sequence, count), (value, greedy) in zip(pairs, engine.score(pairs), strict=True):
        with torch.inference_mode():
            logits = torch.log_softmax(model(torch.tensor([sequence[:-1]])).logits[0, -count:].float(), -1)
        right = logits.gather(-1, torch.tensor(sequence[-count:])[:, None])
        assert value == pytest.approx(float(right.sum()), abs=1e-3)
        assert greedy == bool((logits.argmax(-1) == torch.tensor(sequence[-count:])).all())


@settings(max_examples=20, deadline=None)
@given(
    _MODELS,
    _TOKENS,
    st.lists(st.tuples(_TOKENS, st.integers(1, 12)), min_size=1, max_size=12),
    st.integers(8, 80),
    st.integers(1, 6),
)
def test_random_models_write_what_they_write_alone(
    model: Any, stem: list[int], asked: list[tuple[list[int], int]], tokens: int, rows: int
) -> None:
    """However many places there are, and whoever shares them."""
    from dataclasses import replace

    contexts, limits = [stem + tail for tail, _ in asked] + [stem], [n for _, n in asked] + [5]
    engine = Engine(model, tokens)
    per_token = 2 * 4 * model.config.num_hidden_layers * 32
    engine.budget = replace(engine.budget, cache_bytes=rows * 80 * per_token)
    ends = frozenset(range(4))
    written = engine.generate(contexts, limits, ends=ends)
    for context, limit, got in zip(contexts, limits, written, strict=True):
        ids = list(context)
        for token in got.tokens:
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, -1].float()
            # Not the same token, but as good a one: two of them may be equally likely.
            assert float(logits.max() - logits[token]) < 1e-3
            ids.append(token)
        assert got.ended == (got.tokens[-1] in ends)
        assert got.ended or len(got.tokens) == limit
        assert not ends & set(got.tokens[:-1])


def test_lm_evals_own_command_line_knows_it(tiny_model: Path, tmp_path: Path) -> None:
    import json
    import os
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "harness.measure.scoring", "run", "--model", "prefix-tree", "--tasks", "hellaswag"]
    command += ["--model_args", f"pretrained={tiny_model},dtype=float32", "--device", "cpu", "--limit", "4"]
    command += ["--num_fewshot", "1", "--apply_chat_template", "--log_samples", "--output_path", str(tmp_path)]
    # The bundled documents, found under their hub names from this folder.
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "datasets")
    ended = subprocess.run(
        command, cwd=root / "harness" / "bundled", env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    (found,) = tmp_path.rglob("results_*.json")
    results = json.loads(found.read_text())
    assert 0 <= results["results"]["hellaswag"]["acc_norm,none"] <= 1
    assert results["config"]["scorer"] == "prefix-tree"
    (samples,) = tmp_path.rglob("samples_hellaswag_*.jsonl")
    assert len(samples.read_text().splitlines()) == 4


def test_products_of_both_libraries_are_equal(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(2, 100, 48)
    layer = torch.nn.Linear(48, 32)
    with torch.inference_mode():
        right = layer(rows)
        for short in (True, False):
            monkeypatch.setattr(_products, "_mkl_falls_short", lambda short=short: short)
            torch.testing.assert_close(product(rows, layer.weight, layer.bias), right, atol=1e-5, rtol=1e-5)
            out = torch.empty(200, 32)
            assert product(rows.flatten(0, 1), layer.weight, layer.bias, out=out) is out
            torch.testing.assert_close(out, right.flatten(0, 1), atol=1e-5, rtol=1e-5)
            ids = torch.arange(20)[None]
            expected = loaded.model(ids).logits
            with fast_products(loaded.model):
                assert ("forward" in vars(loaded.model.get_output_embeddings())) is short
                torch.testing.assert_close(loaded.model(ids).logits, expected, atol=1e-4, rtol=1e-4)
            assert "forward" not in vars(loaded.model.get_output_embeddings())


@pytest.mark.parametrize("short", [True, False])
def test_scores_do_not_depend_on_the_library_of_products(
    short: bool, loaded: LoadedModel, theirs: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_products, "_mkl_falls_short", lambda: short)
    _same(PrefixTreeLM(loaded.model, tokenizer=loaded.tokenizer, token_budget=256), theirs, ADVERSARIAL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 5])
def test_attention_of_heads_that_share_keys(dtype: torch.dtype, length: int) -> None:
    query, key, value = (torch.randn(3, h, n, 16, dtype=dtype) for h, n in ((6, length), (2, 40), (2, 40)))
    mask = torch.zeros(3, 1, 1, 40, dtype=dtype)
    mask[1, ..., 30:] = float("-inf")
    for hidden in (None, mask):
        output, sums = attend(query, key, value, scale=0.25, mask=hidden)
        right, right_sums = _attend_math(query.float(), key.float(), value.float(), 0.25, False, hidden)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), right, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(sums, right_sums, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("length", [128, 150, 320])
def test_causal_attention_in_blocks(length: int) -> None:
    query, key, value = (torch.randn(2, h, length, 16) for h in (6, 2, 2))
    output, sums = attend(query, key, value, scale=0.25, causal=True)
    right, right_sums = _attend_math(query, key, value, 0.25, True, None)
    torch.testing.assert_close(output, right, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sums, right_sums, atol=1e-5, rtol=1e-5)
