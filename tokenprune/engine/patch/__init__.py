"""Temporary changes of transformers modules during a session, and checks of transformers internals."""
