"""What a prepared corpus holds, for people: the data card, and rows in color."""
