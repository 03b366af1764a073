"""How notebooks are run: cache, runs, processes, the command."""
