"""Predict on pictures and videos of one's own: python -m tools.predict."""
