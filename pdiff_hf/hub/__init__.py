"""Repositories and files: the client, what may be shared, cards."""
