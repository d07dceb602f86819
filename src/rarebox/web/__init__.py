"""The page on which annotators answer, and its server. It never loads torch: a separate process trains."""
