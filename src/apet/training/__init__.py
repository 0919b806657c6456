"""Training cells: determinism, the one loop, and blocks of cells written whole."""
