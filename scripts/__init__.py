"""The verbs: `python -m scripts.<verb>`."""
