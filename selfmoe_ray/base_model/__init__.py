"""From a `base_model` value to a local checkpoint, its tokenizer and its weights."""

from selfmoe_ray.base_model.load import load_model, load_tokenizer
from selfmoe_ray.base_model.resolve import BaseModel, check_hash, resolve

__all__ = ["BaseModel", "check_hash", "load_model", "load_tokenizer", "resolve"]
