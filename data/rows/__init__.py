"""From documents to rows and the order in which they are drawn."""
