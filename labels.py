"""Label values every room shares: 0..K-1 are known classes."""

OUTLIER = 254  # a pixel of none of the known classes, or of a pasted negative
IGNORE = 255  # a pixel that is neither trained on nor scored
