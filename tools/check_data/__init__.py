"""Check a data set before it is used: python -m tools.check_data."""

from tools.check_data.check import check
from tools.check_data.sources import CHOSEN, SOURCES

__all__ = ["CHOSEN", "SOURCES", "check"]
