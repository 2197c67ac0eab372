"""The HTTP front door: the Open Inference Protocol v2 with binary tensors, as one more client of the controller.

Built on starlette (routes, CORS) and uvicorn (HTTP/1.1 by httptools, uvloop, TLS): both are small, typed, years in use,
released every few weeks, and tell an application of a client that hangs up, which is what cancelling needs. What a
request says is read in `oip` and `tensors`, which know neither HTTP nor sockets. Decides nothing: deadlines are the
controller's to keep, and what it refuses is told as it is.
"""
