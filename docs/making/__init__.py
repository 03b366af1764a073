"""What makes the site out of the repository's own files. Nothing of it runs a notebook or asks the network."""
