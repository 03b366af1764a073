"""Trainers: each takes a model and data, and a rule for c where the method is ours."""
