"""The tiny model with room for the templates' examples."""

from pathlib import Path

import pytest

from harness.method import LoadedModel
from harness.models import load_model


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> LoadedModel:
    loaded = load_model(tiny_model)
    # The examples of the templates are long in a vocabulary of 600; rotary positions have no end of their own.
    loaded.model.config.max_position_embeddings = 4096
    return loaded
