"""How a tokenizer comes about, and how texts and conversations are spelled with it."""
