"""The tiny mixtures of the engine's tests."""

from tests.engine.conftest import mixse_dir

__all__ = ["mixse_dir"]
