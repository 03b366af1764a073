"""What a run would cost, before it starts: `preflab plan`."""
