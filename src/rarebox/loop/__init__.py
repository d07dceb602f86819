"""The active-learning cycle (Fig. 2 of the paper): score, ask, train."""
