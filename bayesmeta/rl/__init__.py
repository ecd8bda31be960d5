"""Reinforcement-learning losses: pure functions, batched over tasks."""
