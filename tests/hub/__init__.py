"""A Hub on this machine for the tests, and what it takes to run the real clients against it."""
