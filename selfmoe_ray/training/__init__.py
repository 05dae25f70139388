"""Trains the experts and the router: rows, schedule, label fit, loop and stage."""
