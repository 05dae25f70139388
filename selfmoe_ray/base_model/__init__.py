"""From a `base_model` value to a local checkpoint, its tokenizer and its weights."""

from selfmoe_ray.base_model.load import check_tensors, load_model, load_tokenizer
from selfmoe_ray.base_model.resolve import BaseModel, check_hash, resolve
from selfmoe_ray.base_model.weights import check_values

__all__ = ["BaseModel", "check_hash", "check_tensors", "check_values", "load_model", "load_tokenizer", "resolve"]
