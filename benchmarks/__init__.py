"""What prints the numbers: `hrm bench NAME --json`. Each module has `run(settings, ...) -> dict`."""
