"""Data sets: recognised, checked, cached, augmented, sampled."""
