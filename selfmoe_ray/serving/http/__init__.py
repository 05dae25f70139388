"""The OpenAI API of one mixture as an ASGI application; knows vLLM, not Ray."""
