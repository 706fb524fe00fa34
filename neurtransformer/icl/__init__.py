"""In-context learning: what a network learns from its context, form by form."""
