"""Progressive delivery: one model replaces another, step by step and reversibly. It knows models by name only."""
