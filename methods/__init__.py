"""One file per post-training method; `harness.method` is the contract they keep."""
