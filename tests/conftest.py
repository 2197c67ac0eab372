"""Every run draws the same examples, so that what passed here passes elsewhere; `--hypothesis-profile=explore` draws new ones."""

from hypothesis import settings

settings.register_profile("same", derandomize=True, database=None)
settings.register_profile("explore", print_blob=True)
settings.load_profile("same")
