"""Prediction, scores, and the search for the UFormer's weights."""
