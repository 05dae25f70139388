"""The environment of small engines."""

from tests.engine.conftest import cpu_engines

__all__ = ["cpu_engines"]
