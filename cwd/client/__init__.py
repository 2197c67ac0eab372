"""The client: blocking and asyncio shells around one sans-IO session. Imports pyzmq, msgpack, numpy."""

from cwd.client.aio import AsyncClient
from cwd.client.blocking import Client, Pending, as_completed
from cwd.client.model import Model, Tensor
from cwd.client.result import Result

__all__ = ["AsyncClient", "Client", "Model", "Pending", "Result", "Tensor", "as_completed"]
