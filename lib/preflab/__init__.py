"""Preference optimisation, opened up: a companion to arXiv 2606.19744 and 2512.00778."""

import warnings

# tqdm's, at the first import of transformers in a notebook; a committed output has no progress bars anyway
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
