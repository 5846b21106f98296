"""`PDiffPipeline`: drawing, loading, saving, sharing."""
