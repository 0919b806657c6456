"""The study as a whole: its cells, resources, result folders and status. Nothing here trains."""
