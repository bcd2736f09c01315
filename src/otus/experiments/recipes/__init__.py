"""Trainings that made what Otus ships, and figures it states: Python files with command, cost and expected figures."""
