"""Target networks: layout, subsets, building, loading, symmetries, inference."""
