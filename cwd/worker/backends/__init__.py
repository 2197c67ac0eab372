"""The devices a worker can have; only what is in here may know torch."""
