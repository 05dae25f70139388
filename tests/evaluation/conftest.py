"""The tiny mixture and run of the measure's tests."""

from tests.measure.conftest import config, mixture, rows, run_dir, tokenizer

__all__ = ["config", "mixture", "rows", "run_dir", "tokenizer"]
