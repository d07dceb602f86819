"""From unlabelled images to questions: views, candidates, their ranking, and the asker."""
