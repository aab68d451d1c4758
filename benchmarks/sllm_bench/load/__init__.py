"""`sllm bench load`: the same bytes, loaded by everybody, in interleaved rounds."""
