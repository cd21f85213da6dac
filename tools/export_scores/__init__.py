"""Score maps for the benchmarks' own tools: python -m tools.export_scores."""
