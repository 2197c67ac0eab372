"""The scheduler core: sans-IO, deterministic, compiled. Start with DESIGN.md; `world` holds the state, `engine` the verbs."""
