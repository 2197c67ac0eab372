"""An intrusive ordered set: a treap whose nodes are rows of a NODE table that the owner indexes as it likes.

A node is in at most one set of its table; a set is the index of its root (-1: empty). Order is by (key, tie); ties
must be unique within a set, so the order is total. A node's rank in the heap order of the treap is a hash of its tie:
shapes are random enough for O(log n) and the same in every run. Parent links give the successor without a stack.
"""

from __future__ import annotations

from cwd.core.hashmap import mix
from cwd.jit import lean_kernel

NONE = -1


@lean_kernel
def before(nodes, a, b):
    """Whether node a comes before node b."""
    x, y = nodes[a], nodes[b]
    if x["key"] != y["key"]:
        return x["key"] < y["key"]
    return x["tie"] < y["tie"]


@lean_kernel
def _replace_child(nodes, root, parent, old, new):
    """Hang `new` (may be -1) where `old` hung under `parent` (-1: it was the root); returns the root."""
    if new != NONE:
        nodes[new]["parent"] = parent
    if parent == NONE:
        return new
    if nodes[parent]["left"] == old:
        nodes[parent]["left"] = new
    else:
        nodes[parent]["right"] = new
    return root


@lean_kernel
def _rotate_up(nodes, root, i):
    """Exchange node i with its parent, keeping the order; returns the root."""
    parent = nodes[i]["parent"]
    root = _replace_child(nodes, root, nodes[parent]["parent"], parent, i)
    if nodes[parent]["left"] == i:
        middle = nodes[i]["right"]
        nodes[parent]["left"] = middle
        nodes[i]["right"] = parent
    else:
        middle = nodes[i]["left"]
        nodes[parent]["right"] = middle
        nodes[i]["left"] = parent
    if middle != NONE:
        nodes[middle]["parent"] = parent
    nodes[parent]["parent"] = i
    return root


@lean_kernel
def insert(nodes, root, i, key, tie):
    """Put node i into the set with (key, tie); returns the new root. Node i must be in no set."""
    node = nodes[i]
    node["key"] = key
    node["tie"] = tie
    node["left"] = node["right"] = NONE
    node["rank"] = mix(tie)
    parent, at = NONE, root
    while at != NONE:
        parent = at
        at = nodes[at]["left"] if before(nodes, i, at) else nodes[at]["right"]
    node["parent"] = parent
    if parent == NONE:
        return i
    if before(nodes, i, parent):
        nodes[parent]["left"] = i
    else:
        nodes[parent]["right"] = i
    while nodes[i]["parent"] != NONE and nodes[i]["rank"] > nodes[nodes[i]["parent"]]["rank"]:
        root = _rotate_up(nodes, root, i)
    return root


@lean_kernel
def remove(nodes, root, i):
    """Take node i out of the set; returns the new root."""
    while True:
        left, right = nodes[i]["left"], nodes[i]["right"]
        if left == NONE or right == NONE:
            break
        root = _rotate_up(nodes, root, left if nodes[left]["rank"] > nodes[right]["rank"] else right)
    return _replace_child(nodes, root, nodes[i]["parent"], i, right if left == NONE else left)


@lean_kernel
def first(nodes, root):
    """The least node of the set, or -1."""
    if root == NONE:
        return NONE
    while nodes[root]["left"] != NONE:
        root = nodes[root]["left"]
    return root


@lean_kernel
def successor(nodes, i):
    """The next node in order, or -1."""
    if nodes[i]["right"] != NONE:
        return first(nodes, nodes[i]["right"])
    at = nodes[i]["parent"]
    while at != NONE and nodes[at]["right"] == i:
        i, at = at, nodes[at]["parent"]
    return at


@lean_kernel
def at_least(nodes, root, key, tie):
    """The first node of the set that is not before (key, tie), or -1."""
    found, at = NONE, root
    while at != NONE:
        node = nodes[at]
        if node["key"] < key or (node["key"] == key and node["tie"] < tie):
            at = node["right"]
        else:
            found, at = at, node["left"]
    return found
