"""Seeds to instructions to responses: the base model writes the data of its own experts."""
