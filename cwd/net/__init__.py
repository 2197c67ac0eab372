"""What cwd's processes talk through: sockets, rings, wake-ups, clocks; it carries bytes and never reads them."""
