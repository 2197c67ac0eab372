"""The wire codec's nopython twin, for the hot messages of messages.py: decode into and encode from structured records.

Sans-IO: it is given an address and a size (a message in libzmq's memory, or `memory.array_address(buffer)`), allocates
nothing, raises nothing, and reads no byte outside what it was given. A record's dtype is built from the table: u8, u16,
u32 as themselves; u64 as i8 (times are below 2^63 by the protocol; ids and handles keep their 64 bits), so that nothing
in a kernel turns into a float; b16 as u1[16], dims as u4[4].

==============================================  =====================================================================
name                                            is
==============================================  =====================================================================
``INFER`` ... ``EXEC_RESULT``                   dtypes (align=True), one for each hot message: make tables of them
``TYPE_INFER`` ...                              the message types as plain ints, all of them (cold ones too)
``SIZE_INFER`` ...                              bytes of the canonical form (of EXEC: without its rows)
``peek_type(address, size)``                    -> type (> 0), hot or cold, or minus a code (MALFORMED, ...)
``decode_infer(address, size, row)`` ...        -> OK or a code; on OK all fields of `row` are set, else they are
                                                undefined. EXEC sets `row["rows_at"]`, `row["rows_n"]` too: n rows of
                                                16 bytes at that offset of the frame
``encode_infer(address, capacity, row)`` ...    -> bytes written, or minus BAD_ARGUMENT (capacity, negative time)
``encode_exec(address, capacity, row, rows)``   as above, with rows u4[n, 4]
``encode_exec_head(address, capacity, row, n)`` -> offset at which the caller puts its n rows (`put_row`); the frame's
                                                size is that offset + n * ROW_BYTES
``put_row(address, offset, dims)``              writes one row (u4[4]) -> next offset
``get_row(address, offset, dims)``              reads one row into dims -> next offset
``encode_error(address, capacity, code, re_type, re_id)``  an ERROR with an empty text, for the hot loop
``fields_dtype(type)``                          the dtype of a hot message, by its type
``warm()``                                      compiles every entry point
==============================================  =====================================================================

Decoders accept every msgpack width, exactly as codec.decode does: the same frames, the same codes.
"""
