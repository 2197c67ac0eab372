"""The controller: the one process that decides. It hosts the scheduler core between three ROUTER sockets."""
