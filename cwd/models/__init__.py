"""Models: what is on disk (repository, manifest, layout), and the torch programs that run it."""
