"""Runs programs that a model wrote, in a process that can do little harm."""
