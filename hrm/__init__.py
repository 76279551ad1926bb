"""The Hierarchical Reasoning Model: knows tensors, not markets."""
