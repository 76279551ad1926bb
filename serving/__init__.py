"""The inference service: model store, engine, routing, rollout, guard and their HTTP face. No torch."""
