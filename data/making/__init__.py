"""From sources to a committed token store, by one process or many."""
