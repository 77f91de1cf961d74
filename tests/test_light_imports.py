"""What loading a model does not import, and that it is there when it is called for."""

import subprocess
import sys
from pathlib import Path

LOAD = """
import sys
from pathlib import Path
from harness.models import load_model
load_model(Path(sys.argv[1]))
print([name for name in ("sklearn", "scipy.stats") if name in sys.modules])
from transformers.generation import candidate_generator
from transformers.utils import is_sklearn_available
assert candidate_generator.is_sklearn_available is is_sklearn_available
print([list(map(float, x)) for x in candidate_generator.roc_curve([0, 1, 1], [0.2, 0.1, 0.9])[:2]])
"""


def test_a_model_is_loaded_without_scikit_learn_which_is_there_when_it_is_called(tiny_model: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    unused, curve = done.stdout.splitlines()
    assert unused == "[]"
    assert curve == "[[0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]]"
