"""Market data, features, the synthetic market and its oracle, environment, evaluation, paper trading."""
