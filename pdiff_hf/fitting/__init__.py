"""From a zoo to a pipeline."""
