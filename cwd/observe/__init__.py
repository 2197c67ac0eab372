"""Who looks at a controller: counts, stories and follow-ups, all made from its event log alone."""
