"""The worker: does what it is told inside the window that it is told, on a real device or on emulated ones."""
