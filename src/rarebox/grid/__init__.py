"""Many runs: which ones, running them, and what their results show."""
