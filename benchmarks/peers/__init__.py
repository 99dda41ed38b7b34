"""The tools that lowbit is measured beside, and lowbit: each a script that runs in a process of its own.

Every script takes `--model`, `--calibration` (a folder written by `feeds.save_feeds`) and `--output`, and prints one
line of JSON: the seconds and the peak memory that quantizing took. The peers' scripts run in their own interpreter and
import nothing but the tool, numpy and this folder.
"""
