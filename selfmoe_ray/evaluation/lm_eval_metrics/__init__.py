"""Metrics that lm-eval's tasks load by name; each is a folder as `evaluate.load` expects it."""
