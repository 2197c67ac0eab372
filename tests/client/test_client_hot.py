"""The fast forms of INFER and REPLY are the codec's, byte for byte; everything else falls back to it."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwd.client import hot
from cwd.errors import RemoteProtocolError
from cwd.wire.codec import decode, encode
from cwd.wire.messages import BY_TYPE, Type

u16, u32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
u64, time_ns = st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1)


@given(u64, u64, time_ns, time_ns, u32, st.tuples(u32, u32, u32, u32))
def test_infer_is_the_codecs(request, model, slo_ns, deadline_ns, app, dims):
    assert hot.encode_infer(request, model, slo_ns, deadline_ns, app, dims) == encode(
        Type.INFER, request=request, model=model, slo_ns=slo_ns, deadline_ns=deadline_ns, app=app, dims=dims)


@given(st.builds(hot.Reply, u64, u16, time_ns, time_ns, time_ns, time_ns, time_ns, u16, u32, st.integers(0, 255)))
def test_reply_is_the_codecs(reply):
    assert hot.Reply._fields == tuple(field.name for field in BY_TYPE[Type.REPLY].fields)
    frame = encode(Type.REPLY, **reply._asdict())
    assert hot.decode_reply(frame) == reply
    # the shortest widths are as valid, and not the fast form
    short = msgpack.packb([0x43574401, 17, *reply])
    if short != frame:
        assert hot.decode_reply(short) is None
        assert hot.decode_any(short) == (Type.REPLY, reply)


@given(st.binary(max_size=90) | st.binary(min_size=67, max_size=67).map(lambda tail: hot._REPLY_HEAD + tail))
def test_no_frame_raises_anything_else(frame):
    fast = hot.decode_reply(frame)
    try:
        kind, fields = decode(frame)
    except RemoteProtocolError:
        # the codec refuses times from 2^63 on; that much the fast form leaves to the session, which only prints them
        assert fast is None or max(fast) >= 2**63
        with pytest.raises(RemoteProtocolError):
            hot.decode_any(frame)
    else:
        assert fast is None or fast == hot.Reply(**fields)
