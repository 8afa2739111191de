"""Commands of other programs that messages name."""

VLLM_SERVER = "python -m vllm.entrypoints.openai.api_server"
"""Starts vLLM's server. The command `vllm` does the same where vLLM's own package is installed; in the CPU rebuild it looks for
its version under a name that is not."""
