"""For those who have weights and images of their own: python -m tools.predict, tools.check_data and others."""
