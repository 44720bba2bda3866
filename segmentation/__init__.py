"""Semantic segmentation in plain PyTorch: U-Net, SegFormer and their weighted average."""
