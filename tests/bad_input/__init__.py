"""Input that is wrong or means harm: each gives one clear error with its place, and exit code 2."""
