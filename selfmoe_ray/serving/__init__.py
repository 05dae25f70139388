"""Serving a mixture: vLLM inside, Ray Serve around it."""
