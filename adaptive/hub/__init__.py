"""Agents that others trained, and agents for others: folders, and repositories of the Hugging Face hub."""
