"""A package, so that its server goes away after the last of its tests."""
