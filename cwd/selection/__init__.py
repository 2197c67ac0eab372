"""Clipper's upper layer: applications over models, with a prediction cache, model selection and feedback.

A library over the client: the gateway uses it, and so does a program of one's own. It knows no scheduler and no worker.
"""
