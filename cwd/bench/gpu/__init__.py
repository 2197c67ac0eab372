"""What a GPU has to be measured for before it serves: experiments, their bars, and what is decided by them."""
