"""The incumbent (PPO) and the controls a challenger must beat."""
