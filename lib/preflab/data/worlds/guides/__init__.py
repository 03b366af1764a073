"""The longer language: guides of two to five steps that depend on every part of the prompt."""
