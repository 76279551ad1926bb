"""Prefect flows, one per phase of the migration: orchestration only, the work is in the packages below."""
