"""What a reviewer asks: what is claimed, where a figure comes from, and whether a rerun agrees."""
