"""The model: a frozen base, stacked LoRA experts on every linear layer, and a gate."""
