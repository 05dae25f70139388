"""selfmoe_ray: any base LLM becomes a mixture of self-specialised experts on a Ray cluster."""

__version__ = "0.1.0"
