"""Measuring an artifact on a target: benchmark tasks, the gold reward, the judge, the latency and memory profile."""
