"""Results that others have, read into the store so that they can be compared with our own."""

from harness.foreign._lm_eval import Imported, import_lm_eval

__all__ = ["Imported", "import_lm_eval"]
