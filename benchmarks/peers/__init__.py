"""The tools that lowbit is measured beside, each a script that runs in its own process, and in its own interpreter."""
