"""What several packages must agree on: actions, settings, gates, halting, errors, files, manifests."""
