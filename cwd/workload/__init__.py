"""Traces, arrivals, open-loop replay and its report. Knows the client and the controller's log, no daemon and no torch."""
