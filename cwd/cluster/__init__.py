"""A whole cluster on this machine, inside a `with` block: see `LocalCluster`."""

from cwd.cluster.child import Child, ChildDied
from cwd.cluster.local import LocalCluster

__all__ = ["Child", "ChildDied", "LocalCluster"]
