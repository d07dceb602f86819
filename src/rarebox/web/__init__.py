"""The page in which people answer, and its server. It never loads torch: training is another process's work."""
