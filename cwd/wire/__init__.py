"""CWDP/1 without I/O: the table of messages, the Python codec, and its nopython twin. The authority is proto_spec/."""
