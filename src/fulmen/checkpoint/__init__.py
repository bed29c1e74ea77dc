"""Checkpoints: their layout (`format`), where the bytes go (`store`), how objects are made of them (`load`)."""
