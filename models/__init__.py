"""Anything with a density or a network: task models (Pyro programs), networks, policies, critics."""
