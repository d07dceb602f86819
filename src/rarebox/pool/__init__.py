"""From the unlabelled images to questions: views, candidates, their ranking, and the asker."""
