"""The core in virtual time: a discrete-event host with emulated GPUs, faults by seed, and checkers."""
