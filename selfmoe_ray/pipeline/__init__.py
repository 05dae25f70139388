"""The stages of a run in their order, and the plan of what they will take."""
