"""What a pattern costs: with and without it, and beside the libraries a reader would pick."""
