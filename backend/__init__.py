"""The seed's HTTP API: backtests and paper positions (`python -m backend`)."""
