"""What annotators said, and the training targets that follow from it."""
