"""From the records of cells to the numbers of the study: the tidy table, its statistics and its tables."""
