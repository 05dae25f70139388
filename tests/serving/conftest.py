"""The tiny mixtures and their engines' environment, of the engine's tests."""

from tests.engine.conftest import cpu_engines, mixse_dir

__all__ = ["cpu_engines", "mixse_dir"]
