"""Attacks on passkey models, to measure what they protect: by frequency, by known words, by comparing embeddings.

The attacker is the server's operator: it holds the converted folder, sees encrypted ids, has the original model if that
is public, and some text of the same kind. No attack uses the key, which only scores what they find.
"""
