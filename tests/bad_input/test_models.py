"""Model folders that are none, broken, or bring code: refused by `plan`, whichever place of a suite names them."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness._model_files import folder_problem, nan_problem
from harness.errors import UserError
from harness.models import load_model, save_model
from tests.bad_input.conftest import Refused, suite_text

Change = Callable[[Path], object]
ROOT = Path(__file__).parents[2]


def _config(**changes: object) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.update(changes)
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def _write(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _remove(*patterns: str) -> Change:
    return lambda folder: [path.unlink() for pattern in patterns for path in folder.glob(pattern)]


def _weights(change: Callable[[bytes], bytes]) -> Change:
    path = "model.safetensors"
    return lambda folder: (folder / path).write_bytes(change((folder / path).read_bytes()))


def _header(change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        raw = json.dumps(header).encode()
        return struct.pack("<Q", len(raw)) + raw + content[8 + length :]

    return _weights(changed)


def _nan(folder: Path) -> None:
    import torch

    loaded = load_model(folder)
    with torch.no_grad():
        loaded.model.get_submodule("model.norm").weight[3] = float("nan")
    save_model(loaded.model, loaded.tokenizer, folder)


def _pickled(*names: str) -> Change:
    def change(folder: Path) -> None:
        _remove("*.safetensors")(folder)
        for name in names:
            (folder / name).write_bytes(pickle.dumps(_Bomb(folder)))

    return change


class _Bomb:
    """Pickled, it leaves a file behind as soon as anybody loads it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder.parent / "pickle-ran"),)


def _code(folder: Path) -> None:
    _config(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}, model_type="own")(folder)
    (folder / "modeling_own.py").write_text(
        f"import os\nos.mkdir({str(folder.parent / 'code-ran')!r})\nclass Own: ...\n"
    )


def _tokenizer_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    path.write_text(json.dumps(config))


def _adapter(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / name).write_bytes(b"x")

    return change


BROKEN: dict[str, tuple[Change, str]] = {
    "empty": (_remove("*"), "is empty; expected config.json"),
    "no config": (_remove("config.json"), "has no config.json"),
    "an adapter alone": (
        lambda f: (_remove("config.json")(f), _write("adapter_config.json", "{}")(f)),
        "merge it into its base model",
    ),
    "config no JSON": (_write("config.json", '{"model_type": "llama",\n oops}'), "config.json:2:2: not JSON"),
    "config empty": (_write("config.json", ""), "config.json:1:1: not JSON"),
    "config a list": (_write("config.json", "[]"), "expected a JSON object, got a list"),
    "config binary": (_write("config.json", b"\xff\xfe\x00"), "config.json: not UTF-8 text"),
    "config deep": (_write("config.json", "[" * 100_000), "config.json: nested too deeply"),
    "no model type": (_config(model_type=None), "no model_type"),
    "unknown model type": (_config(model_type="lama"), "'lama' is no causal language model"),
    "an encoder": (_config(architectures=["BertForMaskedLM"], model_type="bert"), "no causal language model"),
    "an image model": (_config(model_type="vit", architectures=["ViTModel"]), "'vit' is no causal language model"),
    "more layers than weights": (_config(num_hidden_layers=5), "5 layers, but the weights have 2"),
    "another vocabulary": (_config(vocab_size=7), "a vocabulary of 7, but the weights have"),
    "code of its own": (_code, "allow it with --trust-remote-code"),
    "code of a tokenizer": (_tokenizer_code, "without auto_map it loads as it is"),
    "no weights": (_remove("*.safetensors"), "has no *.safetensors"),
    "pickled bin": (_pickled("pytorch_model.bin"), "pytorch_model.bin can run code"),
    "pickled pt": (_pickled("model.pt", "other.pkl"), "model.pt, other.pkl can run code"),
    "weights of another name": (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"),
        "expected model.safetensors",
    ),
    "weights empty": (_weights(lambda _: b""), "is too short"),
    "weights cut off": (_weights(lambda content: content[:-1]), "cut off or damaged"),
    "weights cut off in the header": (_weights(lambda content: content[:100]), "says its header has"),
    "weights too long": (_weights(lambda content: content + b"\0" * 8), "cut off or damaged"),
    "header length lies": (_weights(lambda c: struct.pack("<Q", 2**62) + c[8:]), "4,611,686,018,427,387,904 bytes"),
    "header no JSON": (_weights(lambda c: struct.pack("<Q", 20) + b"x" * 20 + c), "its header is not JSON"),
    "header a list": (_weights(lambda _: struct.pack("<Q", 2) + b"[]"), "its header is no object"),
    "a web page for weights": (_weights(lambda _: b"<!DOCTYPE html><html>log in</html>"), "no safetensors file"),
    "a pointer of git lfs": (
        _weights(lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "cut off",
    ),
    "offsets that cross": (
        _header(lambda h: h["model.norm.weight"].update(data_offsets=[9, 1])),
        "says of model.norm.weight what cannot be",
    ),
    "shape that does not fit": (
        _header(lambda h: h["model.norm.weight"].update(shape=[3, 3])),
        "says of model.norm.weight what cannot be",
    ),
    "part missing": (
        _write("model.safetensors.index.json", json.dumps({"weight_map": {"a": "part-2.safetensors"}})),
        "part-2.safetensors is not in the folder",
    ),
    "tensor missing": (
        _write("model.safetensors.index.json", json.dumps({"weight_map": {"a": "model.safetensors"}})),
        "no file of the folder has the tensor a",
    ),
    "no tokenizer": (_remove("tokenizer*"), "has no tokenizer"),
    "tokenizer no JSON": (_write("tokenizer.json", "{"), "tokenizer.json:1:2: not JSON"),
    "tokenizer of nothing": (_write("tokenizer.json", "{}"), "no tokenizer of the tokenizers library"),
    "tokenizer config cut off": (_write("tokenizer_config.json", '{"a": '), "tokenizer_config.json:1:7: not JSON"),
    "no chat template": (_remove("chat_template.jinja"), "has no chat template"),
    "pickled adapter": (_adapter("adapter_model.bin"), "holds no adapter_model.safetensors"),
    "broken adapter": (_adapter("adapter_model.safetensors"), "adapter_model.safetensors: no safetensors file"),
    "not a number": (_nan, "values that are no numbers (NaN)"),
}


@pytest.fixture
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model, to be broken."""
    return shutil.copytree(tiny_model, tmp_path_factory.mktemp("broken") / "model")


def test_the_model_is_sound_before_it_is_broken(model: Path) -> None:
    assert folder_problem(model) is None
    assert nan_problem(model) is None


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused(refused: Refused, model: Path, case: str) -> None:
    change, expected = BROKEN[case]
    change(model)
    said = refused(suite_text(models=f"[{model}]"))
    assert expected in said
    assert str(model) in said
    assert len(said.splitlines()) == 1
    assert not list(model.parent.glob("*-ran"))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"models": "[{model}]"}, "suite.yaml:2:10: models"),
        ({"recipes": "{{a: [{{distill: {{teacher: {model}}}}}]}}"}, "suite.yaml:3:35: the teacher"),
        ({"measure": "{{judge: {{model: {model}}}}}"}, "suite.yaml:4:26: measure.judge.model"),
    ],
)
def test_pickled_weights_are_refused_wherever_a_model_is_named(
    refused: Refused, model: Path, changes: dict[str, str], place: str
) -> None:
    _pickled("pytorch_model.bin")(model)
    said = refused(suite_text(**{key: value.format(model=model) for key, value in changes.items()}))
    assert said.startswith(place)
    assert "can run code" in said
    assert not (model.parent / "pickle-ran").exists()


def test_a_judge_with_broken_weights_is_found_before_the_training(
    refused: Refused, model: Path, tiny_model: Path
) -> None:
    _nan(model)
    assert "NaN" in refused(suite_text(models=f"[{tiny_model}]", measure=f"{{judge: {{model: {model}}}}}"))


@pytest.mark.parametrize("head", ["causal", "reward"])
def test_loading_never_unpickles(model: Path, head: Any) -> None:
    """Also where no plan was made: whatever asks for a model gets it from safetensors, or an error."""
    _pickled("pytorch_model.bin", "model.bin")(model)
    with pytest.raises(UserError, match="cannot load"):
        load_model(model, head=head)
    assert not (model.parent / "pickle-ran").exists()


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(model: Path) -> None:
    _header(lambda header: header.update({"other": header.pop("model.layers.1.mlp.up_proj.weight")}))(model)
    with pytest.raises(UserError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(model)


def test_weights_of_another_shape_are_an_error_of_the_user(model: Path) -> None:
    _config(intermediate_size=256)(model)
    with pytest.raises(UserError, match="cannot load the model"):
        load_model(model)


def test_a_pickled_adapter_is_not_loaded(model: Path) -> None:
    (model / "adapter").mkdir()
    (model / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb(model)))
    (model / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        load_model(model)
    assert not (model.parent / "pickle-ran").exists()


def test_files_for_folders_and_places_outside(refused: Refused, model: Path, tmp_path: Path) -> None:
    assert "is a file; expected the folder" in refused(suite_text(models=f"[{model / 'config.json'}]"))
    assert "not a hub id" in refused(suite_text(models="[org/..]"))
    # A folder may lie anywhere: it is only read.
    assert "no such folder" in refused(suite_text(models="[../none]"))


OWN = """
import os
from transformers import LlamaConfig, LlamaForCausalLM

open(os.environ["RAN"], "a").close()

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_where_it_is_allowed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "own.py").write_text(OWN)
    _config(
        model_type="own_llama",
        architectures=["OwnModel"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )(model)
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.errors import UserError\n"
        "from harness.models import load_model, resolve_model, save_model\nfrom harness.provenance import environment\n"
        "try:\n"
        "    loaded = load_model(resolve_model(sys.argv[1]))\n"
        "except UserError as error:\n"
        "    sys.exit(str(error))\n"
        # What a stage saves of it is loaded again by the next.
        "save_model(loaded.model, loaded.tokenizer, Path(sys.argv[2]))\n"
        "print(type(load_model(Path(sys.argv[2])).model).__name__, environment().text)\n"
    )
    environment = {**os.environ, "RAN": str(tmp_path / "ran"), "HF_HOME": str(tmp_path / "hub")}

    def run(**more: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", code, str(model), str(tmp_path / "saved")]
        return subprocess.run(
            command, env={**environment, **more}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
        )

    done = run()
    assert "--trust-remote-code" in done.stderr
    assert not (tmp_path / "ran").exists()
    done = run(HARNESS_TRUST_REMOTE_CODE="1")
    assert done.stdout.startswith("OwnModel "), done.stderr
    assert json.loads(done.stdout.partition(" ")[2])["remote code allowed"] is True
    assert (tmp_path / "ran").exists()


def test_code_in_another_repository_is_refused_even_then(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no part of the model's fingerprint: it could change, and the stage's key would not."""
    monkeypatch.setenv("HARNESS_TRUST_REMOTE_CODE", "1")
    _config(auto_map={"AutoModelForCausalLM": "org/elsewhere--own.Own"}, model_type="own")(model)
    assert "another repository" in str(folder_problem(model, remote_code=True))
