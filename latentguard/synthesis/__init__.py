"""Training and test data made up: unsafe prompts with safe twins, other words for a concept, and attacks on prompts.

`grammar` writes prompts with no model; `generate` turns a concept list into a data set with any of `backends`; `attack`
searches adversarial replacements of a concept against a frozen encoder; `splits` rewrites prompts as an attacker would.
"""
