"""Sources of text, splits of tasks, the pretraining corpus, and tokenisation."""
