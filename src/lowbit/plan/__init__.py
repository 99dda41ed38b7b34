"""Recipes, sites and plans: what the user asks for, what could be compressed, and what was decided."""
