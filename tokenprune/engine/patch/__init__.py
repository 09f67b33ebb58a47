"""How modules of transformers are observed and changed for the time of a session, and given back."""
