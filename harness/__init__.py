"""Compare post-training methods at equal budgets, with intervals."""

__version__ = "0.1.0"
__all__ = ["__version__"]
