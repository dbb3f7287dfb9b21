"""The harness: plan, run, and what the run's records add up to."""
