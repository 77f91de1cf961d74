"""Shared fixtures: a tiny random Llama with a real tokenizer, and a cache that is not the user's."""

import gc
import logging
import os
import sys

# Before any library reads them: no network, no telemetry, one thread (two collapse on a loaded machine).
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRL_EXPERIMENTAL_SILENCE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)

from pathlib import Path

import pytest

# A library that logs first within one test's capture writes to that, closed, ever after: not what a test is about.
logging.raiseExceptions = False

# The files that take longest, longest first: with two at work, one that begins last would leave the other idle.
LONG = (
    "test_sweep.py",
    "test_kills.py",
    "execute/test_local.py",
    "execute/test_ray.py",
    "test_early_stopping.py",
    "methods/test_contract.py",
    "report/test_browser.py",
    "measure/test_profile.py",
    "test_resume.py",
    "measure/test_scoring.py",
    "measure/judge/test_endpoint.py",
    "trackers/test_optuna.py",
    "test_faults.py",
)

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Files go out as collected, not those with most tests first (pytest-xdist's `--loadscope-reorder`)."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files named in `LONG` first; the order within a file stays."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


_frozen = 0


def pytest_runtest_setup() -> None:
    """Whenever libraries were imported, leave what is there out of later collections of garbage.

    Each training collects twice, and Python by itself: through torch, transformers and the like that takes a third of a
    second, and finds nothing.
    """
    global _frozen  # noqa: PLW0603  # one count for the process, as the collector is one
    if len(sys.modules) > _frozen + 200:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


def pytest_unconfigure() -> None:
    """The end of the process frees everything, or DuckDB complains."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The mirror of official datasets beside the checkout; its tests skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no mirror of the official datasets beside the checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama (2 layers, 4 heads over 2 KV heads, width 64) and a BPE tokenizer made here."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from harness.models import save_model

    torch.set_num_threads(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Texts that do not change with the code: a new vocabulary would be a new model, with other margins in the tests.
    root = Path(__file__).parent.parent
    corpus = [
        (root / f).read_text(encoding="utf-8") for f in ("LICENSE", "harness/bundled/openai/gsm8k/main/train.jsonl")
    ]
    tokenizer.train_from_iterator(corpus, trainer)
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = (
        "{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=fast.bos_token_id,
            eos_token_id=fast.eos_token_id,
            pad_token_id=fast.pad_token_id,
        )
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(model, fast, folder)
    return folder
