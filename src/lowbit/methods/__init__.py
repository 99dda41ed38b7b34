"""The user's verbs, over all the rooms below."""
