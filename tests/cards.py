"""The dataset cards of mirrors that tests make: which files are which split."""

GSM8K = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
---
"""
ARC = """---
configs:
- config_name: ARC-Easy
  data_files:
  - {split: train, path: train.jsonl}
  - {split: validation, path: train.jsonl}
  - {split: test, path: test.jsonl}
---
"""
